//! A store by its URL: `sqlite:///runs.db` (relative), `sqlite:////var/lib/runs.db` (absolute), with options behind a `?`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Durability, LogStore, SqliteOptions, SqliteStore, StoreError};
use crate::session::StoreOptions;

/// Opens the store that `url` names. Options of every store: `lease_s`, `retention_s`; of SQLite's: `max_bytes`.
pub fn open(url: &str, durability: Durability) -> Result<(Arc<dyn LogStore>, StoreOptions), StoreError> {
    let unusable = |text: String| StoreError::Unusable(text);
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let mut options = StoreOptions { durability, ..StoreOptions::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = value.parse::<f64>().ok().filter(|number| (0.001..1e15).contains(number));
        let number = number.ok_or_else(|| unusable(format!("option {name:?}: expected a number above 0")))?;
        #[allow(clippy::cast_sign_loss, reason = "checked above")]
        match name {
            "lease_s" => options.lease = Duration::from_secs_f64(number.min(86_400.0)),
            "retention_s" => options.retention.max_age_ms = (number * 1000.0) as u64,
            "max_bytes" => options.retention.max_bytes = Some(number as u64),
            _ => return Err(unusable(format!("unknown option {name:?}; known: lease_s, retention_s, max_bytes"))),
        }
    }
    match place.split_once(":///") {
        Some(("sqlite", path)) if !path.is_empty() => {
            // Retention makes room before the file itself refuses.
            let limit = options.retention.max_bytes.map(|max| max.saturating_add(max / 8));
            let store = SqliteStore::open(Path::new(path), &SqliteOptions { durability, max_bytes: limit })?;
            Ok((Arc::new(store), options))
        }
        _ => {
            let scheme: String = place.chars().take_while(|c| *c != ':').take(32).collect();
            Err(unusable(format!("unknown store {scheme:?}; known: memory, sqlite:///FILE")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_refused_and_names_no_secret() {
        for bad in ["sqlite", "sqlite://", "sqlite:///", "nope://user:secret@host/0", "sqlite:///x?lease_s=0", "sqlite:///x?a=1"]
        {
            let error = open(bad, Durability::Process).err().expect(bad);
            assert!(matches!(error, StoreError::Unusable(_)) && !error.to_string().contains("secret"), "{error}");
        }
    }
}
