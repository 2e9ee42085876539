//! The fields of each object, from its CustomResourceDefinition.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

use super::markdown::{code, table};

pub(super) fn section() -> String {
    let objects = crds::manifest::definitions();
    let objects = objects.iter().map(describe_object).collect::<Vec<_>>().join("\n");
    format!("## Objects\n\nThe name of a field that ends with `[]` is a list.\n\n{objects}")
}

fn describe_object(definition: &CustomResourceDefinition) -> String {
    let (spec, names) = (&definition.spec, &definition.spec.names);
    let version = spec.versions.last().expect("a version");
    let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()).expect("a schema");
    let mut rows = Vec::new();
    for (name, part) in schema.properties.iter().flatten() {
        if ["spec", "status"].contains(&name.as_str()) {
            add_fields(name, part, &mut rows);
        }
    }
    let short = names.short_names.iter().flatten().map(|name| code(name)).collect::<Vec<_>>().join(", ");
    let about = schema.description.as_deref().unwrap_or_default();
    format!(
        "### {}\n\n{about}\n\n`{}/{}`, {}; short name {short}.\n\n{}",
        names.kind,
        spec.group,
        version.name,
        spec.scope,
        table(["field", "type", "meaning"], rows)
    )
}

/// Adds the rows of all fields below `path`.
fn add_fields(path: &str, schema: &JSONSchemaProps, rows: &mut Vec<[String; 3]>) {
    let required = schema.required.as_deref().unwrap_or_default();
    for (name, field) in schema.properties.iter().flatten() {
        let items = match &field.items {
            Some(JSONSchemaPropsOrArray::Schema(items)) => Some(&**items),
            _ => None,
        };
        let path = format!("{path}.{name}{}", if items.is_some() { "[]" } else { "" });
        let about = field.description.clone().or_else(|| items.and_then(|items| items.description.clone()));
        let is_required = if required.contains(name) { ", required" } else { "" };
        rows.push([code(&path), type_of(field, items) + is_required, about.unwrap_or_default()]);
        let inner = items.unwrap_or(field);
        // Conditions and label selectors have the fields of Kubernetes.
        let is_selector = inner.properties.as_ref().is_some_and(|fields| fields.contains_key("matchLabels"));
        if name != "conditions" && !is_selector {
            add_fields(&path, inner, rows);
        }
    }
}

fn type_of(field: &JSONSchemaProps, items: Option<&JSONSchemaProps>) -> String {
    let schema = items.unwrap_or(field);
    let name = schema.format.as_ref().or(schema.type_.as_ref()).cloned().unwrap_or_default();
    let default = field.default.as_ref().map(|value| format!(", default `{}`", value.0));
    let list = if items.is_some() { "list of " } else { "" };
    format!("{list}{name}{}", default.unwrap_or_default())
}
