//! Decodes the JSON of lists and watches.
//!
//! Text → typed objects, each decoded once. An object that cannot be decoded is returned as its metadata and the error,
//! and does not affect other objects. Each object of a list stays text until it is decoded and passed on. So at most
//! one object is in memory with all its fields.
//!
//! `DeserializeGuard` of kube is not used, because it first decodes each object into a tree and copies the tree. The
//! tree and its copy are most of the cost of receiving a list.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use kube::core::Status;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error};
use serde_json::Value;
use serde_json::value::RawValue;

/// An object, or the error of decoding it.
pub(crate) type Decoded<R> = Result<R, Undecodable<R>>;

/// An object that cannot be decoded.
#[derive(Clone, Debug)]
pub(crate) struct Undecodable<R> {
    pub(crate) error: String,
    pub(crate) metadata: ObjectMeta,
    /// The object without its status, if that can be decoded.
    pub(crate) without_status: Option<R>,
}

/// An event of a watch.
#[derive(Clone, Debug)]
pub(crate) enum Event<R> {
    /// An object was created or changed to this state.
    Applied(Decoded<R>),
    /// An object was deleted; this was its last state.
    Deleted(Decoded<R>),
    /// All events up to the version in this metadata were sent.
    Bookmark(ObjectMeta),
    /// The API server ends the watch with this error.
    Error(Box<Status>),
}

/// Any object, reduced to its metadata.
#[derive(Deserialize)]
struct MetadataOnly {
    #[serde(default)]
    metadata: ObjectMeta,
}

fn decode_object<R: DeserializeOwned>(text: &RawValue) -> serde_json::Result<Decoded<R>> {
    Ok(match serde_json::from_str(text.get()) {
        Ok(object) => Ok(object),
        Err(error) => {
            let MetadataOnly { metadata } = serde_json::from_str(text.get())?;
            Err(Undecodable { error: error.to_string(), metadata, without_status: decode_without_status(text) })
        }
    })
}

fn decode_without_status<R: DeserializeOwned>(text: &RawValue) -> Option<R> {
    let mut object: serde_json::Map<String, Value> = serde_json::from_str(text.get()).ok()?;
    object.remove("status")?;
    serde_json::from_value(Value::Object(object)).ok()
}

impl<R: DeserializeOwned> Event<R> {
    /// Decodes a line of a watch.
    ///
    /// # Errors
    /// If the line is not an event, or its type is unknown.
    pub(crate) fn decode(line: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            #[serde(borrow)]
            object: &'a RawValue,
        }
        let Line { kind, object } = serde_json::from_str(line)?;
        Ok(match kind {
            "ADDED" | "MODIFIED" => Self::Applied(decode_object(object)?),
            "DELETED" => Self::Deleted(decode_object(object)?),
            "BOOKMARK" => Self::Bookmark(serde_json::from_str::<MetadataOnly>(object.get())?.metadata),
            "ERROR" => Self::Error(serde_json::from_str(object.get())?),
            other => return Err(serde_json::Error::custom(format!("unknown event type {other:?}"))),
        })
    }
}

/// Decodes a page of a list, passes each object to `each` in order, and returns the metadata of the page.
///
/// # Errors
/// If the text is not a list, or the metadata of an object cannot be decoded.
pub(crate) fn decode_list<R: DeserializeOwned>(
    text: &str,
    mut each: impl FnMut(Decoded<R>),
) -> serde_json::Result<ListMeta> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(default)]
        metadata: ListMeta,
        #[serde(borrow)]
        items: Option<Vec<&'a RawValue>>,
    }
    let List { metadata, items } = serde_json::from_str(text)?;
    for item in items.into_iter().flatten() {
        each(decode_object(item)?);
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    fn describe(object: Decoded<Node>) -> String {
        match object {
            Ok(node) => node.metadata.name.unwrap_or_default(),
            Err(Undecodable { error, metadata, .. }) => format!("{}: {error}", metadata.name.unwrap_or_default()),
        }
    }

    #[test]
    fn undecodable_objects_of_a_list_keep_place_and_name() {
        let items =
            json!([{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}, "spec": 7}, {"metadata": {"name": "c"}}]);
        for text in [
            json!({"kind": "NodeList", "metadata": {"resourceVersion": "9", "continue": "x"}, "items": items})
                .to_string(),
            format!(r#"{{"items": {items}, "more": [1], "metadata": {{"resourceVersion": "9", "continue": "x"}}}}"#),
        ] {
            let mut names = Vec::new();
            let metadata = decode_list(&text, |object| names.push(describe(object))).expect("a list");
            assert_eq!(metadata.resource_version.as_deref(), Some("9"));
            assert_eq!(metadata.continue_.as_deref(), Some("x"));
            let [a, b, c] = names.try_into().expect("three");
            assert_eq!((&*a, &*c), ("a", "c"));
            assert!(b.starts_with("b: invalid type: integer `7`"), "{b}");
        }
    }

    #[test]
    fn only_lists_are_decoded_and_they_may_be_empty() {
        let read = |text: &str| decode_list(text, |object: Decoded<Node>| panic!("{object:?}"));
        for text in ["", "nonsense", "[]", r#"{"items": 7}"#, r#"{"items": [7]}"#, r#"{"items": []} x"#] {
            assert!(read(text).is_err(), "{text:?}");
        }
        for text in ["{}", r#"{"items": null}"#, r#"{"items": []}"#] {
            assert!(read(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn events_are_decoded_with_fields_in_any_order() {
        let read = |line: &str| match Event::<Node>::decode(line) {
            Ok(Event::Applied(object)) => format!("applied {}", describe(object)),
            Ok(Event::Deleted(object)) => format!("deleted {}", describe(object)),
            Ok(Event::Bookmark(metadata)) => format!("bookmark {}", metadata.resource_version.unwrap_or_default()),
            Ok(Event::Error(status)) => format!("error {}", status.code),
            Err(error) => format!("invalid: {error}"),
        };
        for (line, expected) in [
            (r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#, "applied a"),
            (r#"{"object":{"metadata":{"name":"a"}},"type":"MODIFIED"}"#, "applied a"),
            (r#"{"type":"DELETED","object":{"metadata":{"name":"a"}}}"#, "deleted a"),
            (r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"7"}}}"#, "bookmark 7"),
            (r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410}}"#, "error 410"),
            (r#"{"type":"NEWS","object":{}}"#, "invalid: unknown event type \"NEWS\""),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
        let undecodable = read(r#"{"type":"ADDED","object":{"metadata":{"name":"b"},"spec":7}}"#);
        assert!(undecodable.starts_with("applied b: invalid type"), "{undecodable}");
        assert!(read("nonsense").starts_with("invalid: "));
    }
}
