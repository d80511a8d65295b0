//! The JSON Schema of the spec, from the declarations in `raw`, for editors and for `segue schema`.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::raw::{RawMapping, RawSpec, RawTable};
use super::read::{At, Bytes, Count, Expression, Expressions, Number, Span};
use super::rollback::Database;
use super::router::{RouterAuth, RouterPool};
use super::{Create, Profile};
use crate::switch::rollback::Then;

/// The JSON Schema (draft 2020-12) of a spec. It accepts `${NAME}` wherever a value may come from the environment.
pub fn json_schema() -> Value {
    let generator =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).into_generator();
    let mut schema = generator.into_root_schema_for::<RawSpec>().to_value();
    if let Value::Object(root) = &mut schema {
        root.insert("title".to_owned(), "Segue migration".into());
    }
    forbid_null(&mut schema);
    schema
}

/// An optional key may be left out, but a key without a value is a mistake: takes the `null` that stands for `Option`
/// out of every type.
fn forbid_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    object.remove("anyOf");
                    for (key, value) in only {
                        object.entry(key).or_insert(value);
                    }
                }
            }
            object.values_mut().for_each(forbid_null);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_null),
        _ => {}
    }
}

/// Implements `JsonSchema` for a form of value.
macro_rules! schema_of {
    ($form:ty, |$generator:ident| $schema:expr) => {
        impl JsonSchema for $form {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($form).into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

schema_of!(Count, |_generator| json_schema!({ "anyOf": [{ "type": "integer" }, from_environment()] }));
schema_of!(Bytes, |_generator| json_schema!({
    "anyOf": [{ "type": "integer" }, { "type": "string", "pattern": "^\\s*[0-9]+\\s*[A-Za-z]*\\s*$" }, from_environment()]
}));
schema_of!(Span, |_generator| json_schema!({
    "anyOf": [{ "type": "integer" }, { "type": "string", "pattern": "^\\s*[0-9]+\\s*(ms|s|min|h)?\\s*$" }, from_environment()]
}));
schema_of!(Profile, |_generator| json_schema!({
    "anyOf": [{ "type": "string", "enum": Profile::ALL.map(Profile::name) }, from_environment()]
}));
schema_of!(Create, |_generator| json_schema!({
    "anyOf": [{ "type": "string", "enum": Create::ALL.map(Create::name) }, from_environment()]
}));
schema_of!(Number, |_generator| json_schema!({ "anyOf": [{ "type": "number" }, from_environment()] }));
schema_of!(Then, |_generator| json_schema!({
    "anyOf": [{ "type": "string", "enum": Then::ALL.map(Then::name) }, from_environment()]
}));
schema_of!(Database, |_generator| json_schema!({
    "anyOf": [{ "type": "string", "enum": Database::ALL.map(Database::name) }, from_environment()]
}));
schema_of!(RouterAuth, |_generator| json_schema!({
    "anyOf": [{ "type": "string", "enum": RouterAuth::ALL.map(RouterAuth::name) }, from_environment()]
}));
schema_of!(RouterPool, |_generator| json_schema!({
    "anyOf": [{ "type": "string", "enum": RouterPool::ALL.map(RouterPool::name) }, from_environment()]
}));
schema_of!(Expression, |_generator| json_schema!({ "type": ["string", "number", "boolean"] }));
schema_of!(Expressions, |generator| json_schema!({
    "type": "object", "additionalProperties": Expression::json_schema(generator)
}));
schema_of!(RawTable, |generator| json_schema!({
    "anyOf": [{ "type": "string", "minLength": 1 }, generator.subschema_for::<RawMapping>()]
}));

fn from_environment() -> Value {
    serde_json::json!({ "type": "string", "pattern": "\\$\\{.+\\}" })
}

/// A place adds nothing to what may be written.
impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
