//! The scripts, and what they answer.
//!
//! Each decides one call on the server in one step. They are asked for by their hash; a server that does not know one yet is
//! sent its text, and knows it then: nothing but EVAL and EVALSHA is needed.

use std::borrow::Cow;
use std::sync::LazyLock;

use redis::{Cmd, ServerError, ServerErrorKind, Value};

use super::Keys;
use crate::store::StoreError;

/// A script's text and its hash.
pub(super) struct Script {
    text: &'static str,
    hash: redis::Script,
}

macro_rules! scripts {
    ($($name:ident $file:literal)*) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            let text = concat!(include_str!("scripts/prelude.lua"), include_str!($file));
            Script { text, hash: redis::Script::new(text) }
        });)*
    };
}

scripts! {
    CLAIM "scripts/claim.lua"
    RENEW "scripts/renew.lua"
    RELEASE "scripts/release.lua"
    APPEND "scripts/append.lua"
    STANDING "scripts/standing.lua"
    READ "scripts/read.lua"
    SEAL "scripts/seal.lua"
    CANCEL "scripts/cancel.lua"
    DELETE "scripts/delete.lua"
    EXPIRE "scripts/expire.lua"
    RENAME "scripts/rename.lua"
}

/// One call of a script.
pub(super) struct Call<'a> {
    script: &'static Script,
    keys: Keys,
    arguments: Vec<Cow<'a, [u8]>>,
}

impl<'a> Call<'a> {
    pub(super) fn new(script: &'static Script, keys: Keys) -> Self {
        Self { script, keys, arguments: Vec::new() }
    }

    pub(super) fn arg(mut self, argument: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.arguments.push(Cow::Borrowed(argument.as_ref()));
        self
    }

    pub(super) fn number(self, number: u64) -> Self {
        self.owned(number.to_string())
    }

    pub(super) fn owned(mut self, argument: String) -> Self {
        self.arguments.push(Cow::Owned(argument.into_bytes()));
        self
    }

    /// The channel and the id that a hint needs.
    pub(super) fn hint(self, session: &'a str) -> Self {
        let channel = self.keys.channel();
        self.owned(channel).arg(session)
    }

    pub(super) fn partition(&self) -> u32 {
        self.keys.partition
    }

    /// As it is sent: by hash, or with the text.
    pub(super) fn command(&self, with_text: bool) -> Cmd {
        let mut command = if with_text { redis::cmd("EVAL") } else { redis::cmd("EVALSHA") };
        command.arg(if with_text { self.script.text } else { self.script.hash.get_hash() }).arg(3);
        for key in [self.keys.session(), self.keys.log(), self.keys.lease()] {
            command.arg(key);
        }
        for argument in &self.arguments {
            command.arg(&**argument);
        }
        command
    }
}

/// What follows the word of a script's answer, where the word is "ok".
pub(super) fn answer(value: Value) -> Result<Vec<Value>, StoreError> {
    let mut items = match value {
        Value::Array(items) if !items.is_empty() => items,
        Value::ServerError(error) => return Err(refusal(&error)),
        _ => return Err(strange()),
    };
    let rest = items.split_off(1);
    let head = || rest.first().map_or(Err(strange()), number);
    match text(&items[0])? {
        "ok" => Ok(rest),
        "unknown" => Err(StoreError::Unknown),
        "fenced" => Err(StoreError::Fenced),
        "sealed" => Err(StoreError::Sealed),
        "not_next" => Err(StoreError::NotNext { head: head()? }),
        "held" => Err(StoreError::Held { remaining_ms: head()? }),
        "version" => Err(other_version()),
        _ => Err(strange()),
    }
}

pub(super) fn other_version() -> StoreError {
    StoreError::Unusable(
        "the session was written by another version of this program, in a form that this one does not know".into(),
    )
}

/// An answer that no script of ours gives.
pub(super) fn strange() -> StoreError {
    StoreError::Corrupt("the server's answer is not understood: its keys may have been changed by another program".into())
}

pub(super) fn text(value: &Value) -> Result<&str, StoreError> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).map_err(|_| strange()),
        Value::SimpleString(text) => Ok(text),
        _ => Err(strange()),
    }
}

pub(super) fn number(value: &Value) -> Result<u64, StoreError> {
    match value {
        Value::Int(number) => u64::try_from(*number).map_err(|_| strange()),
        other => text(other)?.parse().map_err(|_| strange()),
    }
}

/// The word that the server refuses with; of a script, its command's.
pub(super) fn code(error: &ServerError) -> &str {
    let details = error.details().unwrap_or_default();
    if error.kind() != Some(ServerErrorKind::ResponseError) {
        return error.code();
    }
    // As Redis 6 and 7.0, and as later ones and Valkey say it.
    if details.contains("The user executing the script can't") || details.contains("ACL failure in script") {
        return "NOPERM";
    }
    // Redis 6 wraps a command's refusal: "ERR Error running script (…): @user_script:1: @user_script: 1: -OOM command not …".
    ["OOM", "READONLY", "WRONGTYPE", "MISCONF", "NOREPLICAS"]
        .into_iter()
        .find(|code| details.contains(&format!(" -{code} ")) || details.contains(&format!(": {code} ")))
        .unwrap_or(error.code())
}

/// The server's own refusal, in words that hold none of its text where it may repeat what it was sent.
pub(super) fn refusal(error: &ServerError) -> StoreError {
    match code(error) {
        "OOM" => StoreError::Full("the server has reached its maxmemory".into()),
        "WRONGTYPE" => StoreError::Corrupt("a key of the session holds something else".into()),
        "NOAUTH" => StoreError::Unusable("the server asks for a password, and the URL has none".into()),
        "WRONGPASS" => StoreError::Unusable("the server refuses the user name or the password".into()),
        "NOPERM" => StoreError::Unusable(
            "the server's ACL does not let this user do it; needed: ~turnstream:* &turnstream:* +@read +@write +@scripting \
             +@pubsub +@connection +info +time, and of a cluster +cluster|slots +asking"
                .into(),
        ),
        "MOVED" | "ASK" => StoreError::Unavailable("the cluster does not say where a slot is".into()),
        "READONLY" => StoreError::Unavailable("the server is a replica".into()),
        code @ ("LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" | "MISCONF" | "NOREPLICAS" | "UNKILLABLE") => {
            StoreError::Unavailable(format!("the server says {code}"))
        }
        // A text about arguments repeats them.
        code => {
            let said: String =
                error.details().unwrap_or_default().split(", with args").next().unwrap_or_default().chars().take(120).collect();
            StoreError::Unusable(format!("the server says {code} {said}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_sorted_and_repeat_nothing() {
        let said = |line: &str| {
            let Value::ServerError(error) = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() else {
                panic!("{line}")
            };
            refusal(&error)
        };
        let wrapped = |what: &str| said(&format!("ERR Error running script (call to f_1): @user_script:1: {what}"));
        assert!(matches!(
            wrapped("@user_script: 1: -OOM command not allowed when used memory > 'maxmemory'."),
            StoreError::Full(_)
        ));
        assert!(matches!(wrapped("@user_script: 1: -READONLY You can't write"), StoreError::Unavailable(_)));
        assert!(matches!(wrapped("WRONGTYPE Operation against a key"), StoreError::Corrupt(_)));
        let acl =
            ["ERR ACL failure in script: User secret has no permissions", "NOPERM User secret has no permissions"].map(said);
        let acl = acl.into_iter().chain([wrapped("@user_script: 1: The user executing the script can't run this command")]);
        for error in acl {
            assert!(matches!(&error, StoreError::Unusable(text) if text.contains("ACL") && !text.contains("secret")), "{error}");
        }
        assert!(matches!(said("OOM command not allowed when used memory > 'maxmemory'."), StoreError::Full(_)));
        assert!(matches!(said("READONLY You can't write against a read only replica."), StoreError::Unavailable(_)));
        assert!(matches!(said("LOADING Redis is loading the dataset in memory"), StoreError::Unavailable(_)));
        assert!(matches!(said("MASTERDOWN Link with MASTER is down"), StoreError::Unavailable(_)));
        assert!(matches!(said("WRONGTYPE Operation against a key"), StoreError::Corrupt(_)));
        let unknown = said("ERR unknown command 'EVALSHA', with args beginning with: 'secret'");
        assert!(
            matches!(&unknown, StoreError::Unusable(text) if text.contains("EVALSHA") && !text.contains("secret")),
            "{unknown}"
        );
    }
}
