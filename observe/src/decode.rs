//! Objects as JSON, of which each may make no sense without harm to the others.
//!
//! Text → typed objects, each decoded once: what can't be is told by its metadata and what is wrong. (kube's own guard
//! makes a tree of each object and a copy of that before it decodes it, which is most of what receiving a list costs.)
//! Objects of a list are handed on one by one, so that no more than one of them is there as a whole.

use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use kube::core::Status;
use serde::de::{DeserializeOwned, DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An object, or why it can't be read.
#[derive(Clone, Debug)]
pub(crate) struct Lenient<R>(pub(crate) Result<R, Invalid>);

/// An object that can't be read.
#[derive(Clone, Debug)]
pub(crate) struct Invalid {
    /// What is wrong.
    pub(crate) error: String,
    /// Which object it is.
    pub(crate) metadata: ObjectMeta,
}

/// What a watch tells.
#[derive(Clone, Debug)]
pub(crate) enum Event<R> {
    /// An object is like this now.
    Applied(Lenient<R>),
    /// An object is gone; it was like this.
    Deleted(Lenient<R>),
    /// Everything up to the version herein has been told.
    Bookmark(ObjectMeta),
    /// The watch is over, because of this.
    Error(Box<Status>),
}

/// What is read of any object.
#[derive(Deserialize)]
struct Partial {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl<R: DeserializeOwned> Lenient<R> {
    fn read(text: &RawValue) -> serde_json::Result<Self> {
        Ok(Self(match serde_json::from_str(text.get()) {
            Ok(object) => Ok(object),
            Err(error) => {
                let Partial { metadata } = serde_json::from_str(text.get())?;
                Err(Invalid { error: error.to_string(), metadata })
            }
        }))
    }
}

impl<R: DeserializeOwned> Event<R> {
    /// Reads a line of a watch.
    ///
    /// # Errors
    /// If it is no event, or of a type that does not exist.
    pub(crate) fn read(line: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            #[serde(borrow)]
            object: &'a RawValue,
        }
        let Line { kind, object } = serde_json::from_str(line)?;
        Ok(match kind {
            "ADDED" | "MODIFIED" => Self::Applied(Lenient::read(object)?),
            "DELETED" => Self::Deleted(Lenient::read(object)?),
            "BOOKMARK" => Self::Bookmark(serde_json::from_str::<Partial>(object.get())?.metadata),
            "ERROR" => Self::Error(serde_json::from_str(object.get())?),
            other => return Err(serde_json::Error::custom(format!("an event of type {other:?}"))),
        })
    }
}

/// Reads a page of a list, gives each of its objects to `each` in their order, and returns what is said of the page.
///
/// # Errors
/// If it is no list, or an object has no metadata.
pub(crate) fn read_list<R: DeserializeOwned>(text: &str, each: impl FnMut(Lenient<R>)) -> serde_json::Result<ListMeta> {
    let mut text = serde_json::Deserializer::from_str(text);
    let metadata = List { each, object: PhantomData }.deserialize(&mut text)?;
    text.end()?;
    Ok(metadata)
}

/// A list, and where its objects go.
struct List<R, F> {
    each: F,
    object: PhantomData<R>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Metadata,
    Items,
    #[serde(other)]
    Other,
}

impl<'de, R: DeserializeOwned, F: FnMut(Lenient<R>)> DeserializeSeed<'de> for List<R, F> {
    type Value = ListMeta;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ListMeta, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, R: DeserializeOwned, F: FnMut(Lenient<R>)> Visitor<'de> for List<R, F> {
    type Value = ListMeta;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<ListMeta, A::Error> {
        let mut metadata = ListMeta::default();
        while let Some(field) = map.next_key()? {
            match field {
                Field::Metadata => metadata = map.next_value()?,
                Field::Items => map.next_value_seed(Items { each: &mut self.each, object: PhantomData })?,
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(metadata)
    }
}

struct Items<'a, R, F> {
    each: &'a mut F,
    object: PhantomData<R>,
}

impl<'de, R: DeserializeOwned, F: FnMut(Lenient<R>)> DeserializeSeed<'de> for Items<'_, R, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, R: DeserializeOwned, F: FnMut(Lenient<R>)> Visitor<'de> for Items<'_, R, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects, or null for none")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(text) = items.next_element::<&RawValue>()? {
            (self.each)(Lenient::read(text).map_err(Error::custom)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    fn told(object: Lenient<Node>) -> String {
        match object.0 {
            Ok(node) => node.metadata.name.unwrap_or_default(),
            Err(Invalid { error, metadata }) => format!("{}: {error}", metadata.name.unwrap_or_default()),
        }
    }

    #[test]
    fn of_a_list_each_object_is_told_in_order_and_one_that_makes_no_sense_by_its_name() {
        let items =
            json!([{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}, "spec": 7}, {"metadata": {"name": "c"}}]);
        for text in [
            json!({"kind": "NodeList", "metadata": {"resourceVersion": "9", "continue": "x"}, "items": items})
                .to_string(),
            format!(r#"{{"items": {items}, "more": [1], "metadata": {{"resourceVersion": "9", "continue": "x"}}}}"#),
        ] {
            let mut names = Vec::new();
            let metadata = read_list(&text, |object| names.push(told(object))).expect("a list");
            assert_eq!(metadata.resource_version.as_deref(), Some("9"));
            assert_eq!(metadata.continue_.as_deref(), Some("x"));
            let [a, b, c] = names.try_into().expect("three");
            assert_eq!((&*a, &*c), ("a", "c"));
            assert!(b.starts_with("b: invalid type: integer `7`"), "{b}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_and_a_list_may_be_empty() {
        let read = |text: &str| read_list(text, |object: Lenient<Node>| panic!("{object:?}"));
        for text in ["", "nonsense", "[]", r#"{"items": 7}"#, r#"{"items": [7]}"#, r#"{"items": []} x"#] {
            assert!(read(text).is_err(), "{text:?}");
        }
        for text in ["{}", r#"{"items": null}"#, r#"{"items": []}"#] {
            assert!(read(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn events_are_read_whatever_the_order_of_their_fields() {
        let read = |line: &str| match Event::<Node>::read(line) {
            Ok(Event::Applied(object)) => format!("applied {}", told(object)),
            Ok(Event::Deleted(object)) => format!("deleted {}", told(object)),
            Ok(Event::Bookmark(metadata)) => format!("up to {}", metadata.resource_version.unwrap_or_default()),
            Ok(Event::Error(status)) => format!("error {}", status.code),
            Err(error) => format!("no event: {error}"),
        };
        for (line, expected) in [
            (r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#, "applied a"),
            (r#"{"object":{"metadata":{"name":"a"}},"type":"MODIFIED"}"#, "applied a"),
            (r#"{"type":"DELETED","object":{"metadata":{"name":"a"}}}"#, "deleted a"),
            (r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"7"}}}"#, "up to 7"),
            (r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410}}"#, "error 410"),
            (r#"{"type":"NEWS","object":{}}"#, "no event: an event of type \"NEWS\""),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
        let strange = read(r#"{"type":"ADDED","object":{"metadata":{"name":"b"},"spec":7}}"#);
        assert!(strange.starts_with("applied b: invalid type"), "{strange}");
        assert!(read("nonsense").starts_with("no event: "));
    }
}
