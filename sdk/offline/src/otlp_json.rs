//! OTLP/JSON, read as protobuf's JSON rules allow it to be written.
//!
//! The generated types are stricter than the rules in a few places. One value
//! that they refuse would cost the whole request, so such values are brought
//! into the form they take first.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use serde_json::{Map, Value};

/// Reads an export request, or the content of an OTLP/JSON file, which has the
/// same form.
///
/// # Errors
/// If it is not JSON, or not an export request's.
pub fn decode(body: &[u8]) -> serde_json::Result<ExportTraceServiceRequest> {
    // Most bodies need no help; an error here is found again below.
    if let Ok(request) = serde_json::from_slice(body) {
        return Ok(request);
    }
    let mut value = serde_json::from_slice(body)?;
    normalize(&mut value);
    serde_json::from_value(value)
}

fn normalize(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(normalize),
        Value::Object(fields) => {
            // `null` is how a field that is not set may be written.
            fields.retain(|_, field| !field.is_null());
            for kind in ["arrayValue", "kvlistValue"] {
                if let Some(Value::Object(list)) = fields.get_mut(kind) {
                    list.entry("values").or_insert_with(|| Value::Array(vec![]));
                }
            }
            number_from_text(fields);
            fields.values_mut().for_each(normalize);
        }
        _ => {}
    }
}

/// A double may come as text. NaN and the infinities have to, and stay text.
fn number_from_text(fields: &mut Map<String, Value>) {
    let Some(Value::String(text)) = fields.get("doubleValue") else {
        return;
    };
    let Ok(number) = text.parse::<f64>() else {
        return;
    };
    match serde_json::Number::from_f64(number) {
        Some(number) => {
            fields.insert("doubleValue".to_owned(), Value::Number(number));
        }
        None => {
            if let Some(text) = fields.remove("doubleValue") {
                fields.insert("stringValue".to_owned(), text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unset_fields_empty_lists_and_doubles_as_text_are_taken() {
        let attributes = |values: Value| {
            let body = json!({"resourceSpans": [{
                "schemaUrl": null,
                "resource": {"attributes": values},
            }]});
            decode(body.to_string().as_bytes())
        };
        let lenient = attributes(json!([
            {"key": "a", "value": {"arrayValue": {}}},
            {"key": "b", "value": {"doubleValue": "0.5"}},
            {"key": "c", "value": {"doubleValue": "NaN"}},
            {"key": "d", "value": {"kvlistValue": {"values": [{"key": "e", "value": null}]}}},
        ]));
        let strict = attributes(json!([
            {"key": "a", "value": {"arrayValue": {"values": []}}},
            {"key": "b", "value": {"doubleValue": 0.5}},
            {"key": "c", "value": {"stringValue": "NaN"}},
            {"key": "d", "value": {"kvlistValue": {"values": [{"key": "e"}]}}},
        ]));
        assert_eq!(lenient.unwrap(), strict.unwrap());
    }

    #[test]
    fn what_is_no_export_request_is_refused_with_a_reason() {
        let reason = |body: &str| decode(body.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            reason("{"),
            "EOF while parsing an object at line 1 column 1"
        );
        assert_eq!(
            reason(r#"{"resourceSpans": 7}"#),
            "invalid type: integer `7`, expected a sequence"
        );
    }
}
