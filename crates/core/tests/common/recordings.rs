//! The recorded streams of the shared test data, and who reads each.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use turnstream_core::provider::providers;

/// Which provider reads a recorded protocol.
const PROTOCOLS: &[(&str, &str)] = &[
    ("openai-chat", "openai-chat"),
    ("completions", "openai-chat"),
    ("anthropic", "anthropic"),
    ("openai-responses", "openai-responses"),
    ("gemini", "gemini"),
    ("ollama", "ollama"),
    ("cohere", "cohere"),
    ("interactions", "interactions"),
    ("realtime", "realtime"),
    ("bedrock", "bedrock"),
    ("bedrock-jsonl", "bedrock"),
    ("codex", "codex"),
];

/// Which provider reads a recording whose protocol has no name of its own: by its kind, or by the beginning of its name
/// where it has no oracle at all.
const OTHERS: &[(&str, &str)] = &[
    ("openai-assistants", "assistants"),
    ("replicate", "replicate"),
    ("watsonx", "watsonx"),
    ("lcgo-testwithpullmodel", "ollama"),
    ("pydai-test_mcptoolset", "mcp"),
    ("rubyllm-transcription", "transcription"),
];

/// A recorded stream.
pub(crate) struct Case {
    /// Its folder and its name.
    pub(crate) name: String,
    /// Who reads it.
    pub(crate) provider: &'static str,
    /// The body.
    pub(crate) bytes: Vec<u8>,
    /// What its oracle made of it.
    pub(crate) expected: Value,
}

/// The recordings, or `None` with one line said where there are none.
pub(crate) fn cases() -> Option<Vec<Case>> {
    let corpus = super::shared()?.join("corpus");
    let mut cases = Vec::new();
    let folders = std::fs::read_dir(&corpus).expect("the corpus is there").map(|entry| entry.expect("readable").path());
    for folder in folders.filter(|path| path.is_dir()) {
        let folder_name = folder.file_name().and_then(|name| name.to_str()).expect("plain names");
        for entry in std::fs::read_dir(&folder).expect("the folder is there") {
            let path = entry.expect("readable").path();
            let file = path.file_name().and_then(|name| name.to_str()).expect("plain names");
            let Some(stem) = file.strip_suffix(".expected.json") else { continue };
            let name = format!("{folder_name}/{stem}");
            let expected: Value = serde_json::from_slice(&std::fs::read(&path).expect("readable")).expect("JSON");
            let named = PROTOCOLS.iter().find(|(protocol, _)| expected["protocol"] == *protocol);
            let other = || OTHERS.iter().find(|(of, _)| expected["kind"][0] == *of || stem.starts_with(of));
            let (_, provider) = named.or_else(other).unwrap_or_else(|| panic!("{name}: nobody reads it"));
            let bytes = ["sse", "chunks.jsonl", "ndjson", "jsonl", "json", "bin"]
                .iter()
                .find_map(|ending| std::fs::read(path.with_file_name(format!("{stem}.{ending}"))).ok())
                .unwrap_or_else(|| panic!("{name}: no recording"));
            if providers().any(|known| known == *provider) {
                cases.push(Case { name, provider, bytes, expected });
            }
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(cases.len() > 100, "only {} recordings", cases.len());
    Some(cases)
}

/// Runs `check` over all cases on two threads and fails with all that it found.
pub(crate) fn each(cases: &[Case], check: impl Fn(&Case) -> Vec<String> + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut faults = Vec::new();
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            faults.extend(check(case).into_iter().map(|fault| format!("{}: {fault}", case.name)));
        }
        faults
    };
    let faults = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut faults = work();
        faults.extend(other.join().expect("the other half"));
        faults
    });
    assert!(faults.is_empty(), "{} faults in {} recordings\n{}", faults.len(), cases.len(), faults.join("\n"));
}
