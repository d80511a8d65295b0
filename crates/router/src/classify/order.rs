//! What order the rows of a read come in, as far as its text tells.

use serde_json::Value;

/// The order that a read asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// None.
    None,
    /// By output columns, the first of them numbered 0. Rows that are equal in all of them come in any order.
    Keys(Vec<usize>),
    /// By something that is not among the output, or not certainly.
    Hidden,
}

/// A constant among the sort keys is the position of an output column: the order depends on it.
pub(super) fn is_positional(tree: &Value) -> bool {
    let sort = tree["SelectStmt"]["sort_clause"].as_array();
    sort.is_some_and(|keys| keys.iter().any(|key| !key_of(key)["AConst"].is_null()))
}

/// Of a `SelectStmt`.
pub(super) fn order(select: &Value) -> Order {
    let sort = select["sort_clause"].as_array().map_or(&[][..], Vec::as_slice);
    if sort.is_empty() {
        return Order::None;
    }
    // A set operation's columns are named by its first part, and its keys are names or positions.
    let mut first = select;
    while !first["larg"].is_null() {
        first = &first["larg"];
    }
    let targets = first["target_list"].as_array().map_or(&[][..], Vec::as_slice);
    let is_set = !select["larg"].is_null();
    let keys: Option<Vec<usize>> = sort.iter().map(|key| position(key_of(key), targets, is_set)).collect();
    keys.map_or(Order::Hidden, Order::Keys)
}

/// The expression of a sort key, within which the type of its node is a member.
fn key_of(key: &Value) -> &Value {
    &key["node"]["SortBy"]["node"]["node"]
}

fn position(key: &Value, targets: &[Value], is_set: bool) -> Option<usize> {
    if !key["AConst"].is_null() {
        let position = key["AConst"]["val"]["Ival"]["ival"].as_u64()?;
        return usize::try_from(position).ok()?.checked_sub(1);
    }
    let found = match name_of(key) {
        Some(name) => targets.iter().position(|target| output_name(target) == Some(name)),
        None => None,
    };
    let equal = |target: &Value| is_same(&target["node"]["ResTarget"]["val"]["node"], key);
    let found = match is_set {
        true => found?,
        false => found.or_else(|| targets.iter().position(equal))?,
    };
    // A star before it is any number of columns.
    targets[..found].iter().all(|target| !is_star(target)).then_some(found)
}

/// Of a column that is named without its table.
fn name_of(key: &Value) -> Option<&str> {
    match key["ColumnRef"]["fields"].as_array()?.as_slice() {
        [name] => name["node"]["String"]["sval"].as_str(),
        _ => None,
    }
}

/// What a target is called, if its name or its column's says so.
fn output_name(target: &Value) -> Option<&str> {
    let target = &target["node"]["ResTarget"];
    match target["name"].as_str() {
        Some(name) if !name.is_empty() => Some(name),
        _ => last(&target["val"]["node"]["ColumnRef"]["fields"])?["String"]["sval"].as_str(),
    }
}

fn is_star(target: &Value) -> bool {
    let value = &target["node"]["ResTarget"]["val"]["node"];
    [&value["ColumnRef"]["fields"], &value["AIndirection"]["indirection"]]
        .into_iter()
        .any(|fields| last(fields).is_some_and(|field| !field["AStar"].is_null()))
}

fn last(fields: &Value) -> Option<&Value> {
    fields.as_array()?.last().map(|field| &field["node"])
}

/// The same expression, wherever in the text.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| {
                    super::walk::is_place(name) || other.get(name).is_some_and(|there| is_same(value, there))
                })
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (one, other) => one == other,
    }
}
