//! What the service knows.

const DOCUMENTS: [(&str, &str); 3] = [
    (
        "prefill",
        "Prefill reads the whole prompt and makes its KV cache.",
    ),
    (
        "decode",
        "Decode makes one token after the other from the KV cache.",
    ),
    (
        "time",
        "The time to the first token is queueing, prefill and the KV transfer.",
    ),
];

/// The documents that have to do with a question.
#[tracing::instrument(skip_all, fields(question.length = question.len(), documents))]
pub(crate) fn documents_for(question: &str) -> Vec<&'static str> {
    let question = question.to_lowercase();
    let found: Vec<&str> = DOCUMENTS
        .into_iter()
        .filter(|(topic, _)| question.contains(topic))
        .map(|(_, text)| text)
        .collect();
    tracing::Span::current().record("documents", found.len());
    found
}
