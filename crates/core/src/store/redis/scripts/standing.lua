local at = standing()
if not at then return {'unknown'} end
return {'ok', at}
