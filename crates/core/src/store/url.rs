//! A store by its URL: `sqlite:///runs.db` (relative), `sqlite:////var/lib/runs.db` (absolute), `redis://user:password@host/0`,
//! `rediss://…` (TLS), `redis+unix:///run/redis.sock`; with options behind a `?`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Durability, LogStore, RedisOptions, RedisStore, SqliteOptions, SqliteStore, StoreError};
use crate::session::StoreOptions;

/// Opens the store that `url` names. Options of every store: `lease_s`, `retention_s`; of SQLite's: `max_bytes`; of Redis's:
/// `timeout_s`, `ca_file`, `cert_file` with `key_file`, and by a socket `db`, `user`, `pass`.
pub fn open(url: &str, durability: Durability) -> Result<(Arc<dyn LogStore>, StoreOptions), StoreError> {
    let unusable = |text: String| Err(StoreError::Unusable(text));
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let scheme = place.split_once(":///").or_else(|| place.split_once("://")).map_or(place, |(scheme, _)| scheme);
    let mut options = StoreOptions { durability, ..StoreOptions::default() };
    let mut redis = RedisOptions { durability, ..RedisOptions::default() };
    let (mut certificate, mut key) = (None, None);
    let mut socket = Vec::new();
    let known = match scheme {
        "sqlite" => "lease_s, retention_s, max_bytes",
        "redis" => "lease_s, retention_s, timeout_s",
        "rediss" => "lease_s, retention_s, timeout_s, ca_file, cert_file, key_file",
        "redis+unix" => "lease_s, retention_s, timeout_s, db, user, pass",
        _ => "",
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty() && !known.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !known.split(", ").any(|known| known == name) {
            return match (scheme, name) {
                ("sqlite", _) => unusable(format!("unknown option {name:?}; known: {known}")),
                (_, "max_bytes") => {
                    unusable("option \"max_bytes\" is SQLite's: a Redis server has a maxmemory of its own".into())
                }
                _ => unusable(format!("unknown option {name:?}; known: {known}")),
            };
        }
        let number = || {
            let number = value.parse::<f64>().ok().filter(|number| (0.001..1e15).contains(number));
            number.ok_or_else(|| StoreError::Unusable(format!("option {name:?}: expected a number above 0")))
        };
        let seconds = || number().map(|number| Duration::from_secs_f64(number.min(86_400.0)));
        #[allow(clippy::cast_sign_loss, reason = "checked above")]
        match name {
            "lease_s" => options.lease = seconds()?,
            "retention_s" => options.retention.max_age_ms = (number()?.min(1e11) * 1000.0) as u64,
            "max_bytes" => options.retention.max_bytes = Some(number()? as u64),
            "timeout_s" => redis.limit = seconds()?,
            "ca_file" => redis.ca_file = Some(PathBuf::from(value)),
            "cert_file" => certificate = Some(PathBuf::from(value)),
            "key_file" => key = Some(PathBuf::from(value)),
            _ => socket.push(pair),
        }
    }
    match place.split_once(":///") {
        Some(("sqlite", path)) if !path.is_empty() => {
            // Retention makes room before the file itself refuses.
            let limit = options.retention.max_bytes.map(|max| max.saturating_add(max / 8));
            let store = SqliteStore::open(Path::new(path), &SqliteOptions { durability, max_bytes: limit })?;
            Ok((Arc::new(store), options))
        }
        _ if matches!(scheme, "redis" | "rediss" | "redis+unix") => {
            redis.retention = Duration::from_millis(options.retention.max_age_ms);
            redis.identity = match (certificate, key) {
                (Some(certificate), Some(key)) => Some((certificate, key)),
                (None, None) => None,
                _ => return unusable("options \"cert_file\" and \"key_file\" belong together".into()),
            };
            let url = if socket.is_empty() { place.to_owned() } else { format!("{place}?{}", socket.join("&")) };
            Ok((Arc::new(RedisStore::open(&url, &redis)?), options))
        }
        _ => {
            let scheme: String = place.chars().take_while(|c| *c != ':').take(32).collect();
            unusable(format!(
                "unknown store {scheme:?}; known: memory, sqlite:///FILE, redis://HOST, rediss://HOST, redis+unix:///FILE"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_refused_and_names_no_secret() {
        for bad in [
            "sqlite",
            "sqlite://",
            "sqlite:///",
            "nope://user:secret@host/0",
            "sqlite:///x?lease_s=0",
            "sqlite:///x?a=1",
            "sqlite:///x?timeout_s=1",
            "redis",
            "redis://",
            "redis://user:secret@[host",
            "redis://user:secret@host/secret",
            "redis://user:secret@host/0?max_bytes=9",
            "redis://user:secret@host/0?colour=secret",
            "redis://user:secret@host/0?timeout_s=secret",
            "redis://user:secret@host/0?ca_file=/nowhere",
            "rediss://user:secret@host/0?ca_file=/nowhere/ca.pem",
            "rediss://user:secret@host/0?cert_file=/nowhere/own.pem",
            "rediss://user:secret@host/0#insecure",
        ] {
            let error = open(bad, Durability::Process).err().expect(bad);
            assert!(matches!(error, StoreError::Unusable(_)) && !error.to_string().contains("secret"), "{bad}: {error}");
        }
    }
}
