//! What a server says of itself, and whether it will do.

use crate::store::StoreError;

/// Exclusive bounds of XRANGE came with it, and effects of scripts are replicated.
const OLDEST: (u32, u32) = (6, 2);

/// What INFO says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    name: String,
    version: String,
    policy: Option<String>,
    cluster: bool,
}

impl Facts {
    pub(super) fn read(info: &str) -> Self {
        let field = |name: &str| {
            let of = |line: &str| line.strip_prefix(name)?.strip_prefix(':').map(|value| value.trim().to_owned());
            info.lines().find_map(of)
        };
        // Valkey says `redis_version:7.2.4` for the sake of clients, and what it is beside it.
        let valkey = field("valkey_version");
        Self {
            name: if valkey.is_some() { "Valkey" } else { "Redis" }.into(),
            version: valkey.or_else(|| field("redis_version")).unwrap_or_default(),
            policy: field("maxmemory_policy"),
            cluster: field("cluster_enabled").as_deref() == Some("1"),
        }
    }

    /// Whether others may have a part of the keys.
    pub(super) fn is_clustered(&self) -> bool {
        self.cluster
    }

    /// Refuses what is too old.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let mut parts = self.version.split('.').map_while(|part| part.parse::<u32>().ok());
        match (parts.next(), parts.next()) {
            (Some(major), Some(minor)) if (major, minor) >= OLDEST => Ok(()),
            (Some(_), Some(_)) => Err(too_old(&format!("{} {}", self.name, self.version))),
            _ => Err(StoreError::Unusable("the server does not say which version it is".into())),
        }
    }

    /// What an operator should know.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(policy) = self.policy.as_deref().filter(|policy| *policy != "noeviction") {
            warnings.push(format!(
                "the Redis server's maxmemory-policy is {policy}: it may drop sessions that are in use; set it to noeviction"
            ));
        }
        warnings
    }
}

pub(super) fn too_old(what: &str) -> StoreError {
    StoreError::Unusable(format!("{what} is too old: Redis 6.2 or newer is needed, or Valkey"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_is_refused() {
        let checked = |info: &str| Facts::read(info).check();
        let old = checked("# Server\r\nredis_version:6.0.16\r\nredis_mode:standalone\r\n").unwrap_err();
        assert_eq!(old.to_string(), "store: Redis 6.0.16 is too old: Redis 6.2 or newer is needed, or Valkey");
        for new in [
            "redis_version:6.2.0\r\n",
            "redis_version:7.0.15\r\n",
            "redis_version:10.0.0\r\n",
            "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\n",
        ] {
            assert_eq!(checked(new), Ok(()), "{new}");
        }
        assert!(checked("").is_err());
        let valkey = Facts::read("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\n");
        assert_eq!((&*valkey.name, &*valkey.version), ("Valkey", "8.1.0"));
    }

    #[test]
    fn an_eviction_policy_is_warned_of() {
        let warned = |policy: &str| Facts::read(&format!("maxmemory_policy:{policy}\r\n")).warnings();
        assert!(warned("noeviction").is_empty());
        assert!(warned("allkeys-lru")[0].contains("allkeys-lru"));
    }
}
