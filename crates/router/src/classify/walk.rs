//! Walks the tree of a SELECT, and stops at the first thing that is not known to be harmless.
//!
//! The rule is complete by its form: of every node its type must be listed in [`members`], and every member of it that
//! is not listed there must have its default. Names are looked up in the [`Catalog`]; what they stand for is judged
//! there. The trees are those of the parser before any analysis, as `serde_json` writes the types of `pg_query`.

use super::catalog::Catalog;
use super::names;
use super::{StatementKind, Why};
use pg_query::protobuf::SqlValueFunctionOp as ValueOp;
use serde_json::{Map, Value};

/// What a tree reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// A migrated table is among it.
    pub(super) tables: bool,
    /// The result may depend on chance.
    pub(super) chance: bool,
}

impl Found {
    pub(super) fn and(self, other: Found) -> Found {
        Found { tables: self.tables || other.tables, chance: self.chance || other.chance }
    }
}

/// How to go on with a member of a node.
#[derive(Debug, Clone, Copy)]
enum As {
    /// Nodes, or one, or none.
    Nodes,
    /// A message of this type, or none.
    Message(&'static str),
    /// Whatever it says, it is harmless, or looked at elsewhere.
    Plain,
}

/// Types that hold nothing to walk.
const LEAVES: &[&str] =
    &["AConst", "AStar", "Alias", "BitString", "Boolean", "Float", "Integer", "ParamRef", "String"];

/// Of a query.
const SELECT: &[(&str, As)] = &[
    ("distinct_clause", As::Nodes),
    ("target_list", As::Nodes),
    ("from_clause", As::Nodes),
    ("where_clause", As::Nodes),
    ("group_clause", As::Nodes),
    ("group_distinct", As::Plain),
    ("having_clause", As::Nodes),
    ("window_clause", As::Nodes),
    ("values_lists", As::Nodes),
    ("sort_clause", As::Nodes),
    ("limit_offset", As::Nodes),
    ("limit_count", As::Nodes),
    ("limit_option", As::Plain),
    // Walked before the rest, which it hides tables from.
    ("with_clause", As::Plain),
    ("op", As::Plain),
    ("all", As::Plain),
    ("larg", As::Message("SelectStmt")),
    ("rarg", As::Message("SelectStmt")),
];

/// All types of nodes that can be harmless, each with the members that may be there.
fn members(node: &str) -> Option<&'static [(&'static str, As)]> {
    use As::{Message, Nodes, Plain};
    Some(match node {
        "SelectStmt" => SELECT,
        "WithClause" => &[("ctes", Nodes), ("recursive", Plain)],
        "CommonTableExpr" => {
            &[("ctename", Plain), ("aliascolnames", Nodes), ("ctematerialized", Plain), ("ctequery", Nodes)]
        }
        "ResTarget" => &[("name", Plain), ("val", Nodes)],
        "RangeVar" => &[
            ("schemaname", Plain),
            ("relname", Plain),
            ("inh", Plain),
            ("relpersistence", Plain),
            ("alias", Message("Alias")),
        ],
        "RangeSubselect" => &[("lateral", Plain), ("subquery", Nodes), ("alias", Message("Alias"))],
        "RangeFunction" => &[
            ("lateral", Plain),
            ("ordinality", Plain),
            ("is_rowsfrom", Plain),
            ("functions", Nodes),
            ("alias", Message("Alias")),
            ("coldeflist", Nodes),
        ],
        "ColumnDef" => &[
            ("colname", Plain),
            ("type_name", Message("TypeName")),
            ("is_local", Plain),
            ("coll_clause", Message("CollateClause")),
        ],
        "JoinExpr" => &[
            ("jointype", Plain),
            ("is_natural", Plain),
            ("larg", Nodes),
            ("rarg", Nodes),
            ("using_clause", Nodes),
            ("join_using_alias", Message("Alias")),
            ("quals", Nodes),
            ("alias", Message("Alias")),
        ],
        "SortBy" => &[("node", Nodes), ("sortby_dir", Plain), ("sortby_nulls", Plain), ("use_op", Nodes)],
        "GroupingSet" => &[("kind", Plain), ("content", Nodes)],
        "WindowDef" => &[
            ("name", Plain),
            ("refname", Plain),
            ("partition_clause", Nodes),
            ("order_clause", Nodes),
            ("frame_options", Plain),
            ("start_offset", Nodes),
            ("end_offset", Nodes),
        ],
        _ => return expression_members(node),
    })
}

fn expression_members(node: &str) -> Option<&'static [(&'static str, As)]> {
    use As::{Message, Nodes, Plain};
    Some(match node {
        "List" => &[("items", Nodes)],
        "ColumnRef" => &[("fields", Nodes)],
        "AExpr" => &[("kind", Plain), ("name", Nodes), ("lexpr", Nodes), ("rexpr", Nodes)],
        "BoolExpr" => &[("boolop", Plain), ("args", Nodes)],
        "NullTest" => &[("arg", Nodes), ("nulltesttype", Plain), ("argisrow", Plain)],
        "BooleanTest" => &[("arg", Nodes), ("booltesttype", Plain)],
        "SubLink" => &[
            ("sub_link_type", Plain),
            ("sub_link_id", Plain),
            ("testexpr", Nodes),
            ("oper_name", Nodes),
            ("subselect", Nodes),
        ],
        "CaseExpr" => &[("arg", Nodes), ("args", Nodes), ("defresult", Nodes)],
        "CaseWhen" => &[("expr", Nodes), ("result", Nodes)],
        "CoalesceExpr" | "AArrayExpr" => &[("args", Nodes), ("elements", Nodes)],
        "MinMaxExpr" => &[("op", Plain), ("args", Nodes)],
        "RowExpr" => &[("args", Nodes), ("row_format", Plain)],
        "GroupingFunc" => &[("args", Nodes)],
        "SqlvalueFunction" => &[("op", Plain), ("typmod", Plain)],
        "TypeCast" => &[("arg", Nodes), ("type_name", Message("TypeName"))],
        "TypeName" => &[("names", Nodes), ("typmods", Nodes), ("typemod", Plain), ("array_bounds", Nodes)],
        "CollateClause" => &[("arg", Nodes), ("collname", Nodes)],
        "AIndirection" => &[("arg", Nodes), ("indirection", Nodes)],
        "AIndices" => &[("is_slice", Plain), ("lidx", Nodes), ("uidx", Nodes)],
        "NamedArgExpr" => &[("arg", Nodes), ("name", Plain), ("argnumber", Plain)],
        "FuncCall" => &[
            ("funcname", Nodes),
            ("args", Nodes),
            ("agg_order", Nodes),
            ("agg_filter", Nodes),
            ("over", Message("WindowDef")),
            ("agg_within_group", Plain),
            ("agg_star", Plain),
            ("agg_distinct", Plain),
            ("func_variadic", Plain),
            ("funcformat", Plain),
        ],
        _ => return None,
    })
}

/// Members that say where something stands in the text, in every type.
pub(super) fn is_place(member: &str) -> bool {
    matches!(member, "location" | "list_start" | "list_end" | "rexpr_list_start" | "rexpr_list_end")
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(true) | Value::Object(_) => false,
    }
}

/// Why a type, or a member, that is not listed makes a text the owner's.
fn unlisted(name: &str) -> Why {
    match name {
        "locking_clause" => Why::Locks,
        "into_clause" | "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt" => Why::Write,
        _ => Why::UnknownSyntax,
    }
}

/// A walk over one statement.
pub(super) struct Walk<'a> {
    catalog: &'a Catalog,
    /// Names of WITH that hide tables here, the innermost last.
    hiding: Vec<String>,
    found: Found,
    strongest: StatementKind,
}

impl<'a> Walk<'a> {
    pub(super) fn new(catalog: &'a Catalog) -> Walk<'a> {
        Walk { catalog, hiding: Vec::new(), found: Found::default(), strongest: StatementKind::Select }
    }

    /// What was found; all of it only if the walk came to its end.
    pub(super) fn found(&self) -> Found {
        self.found
    }

    /// The strongest kind of statement that was met, within WITH.
    pub(super) fn strongest(&self) -> StatementKind {
        self.strongest
    }

    /// A tree with its type as its only member.
    pub(super) fn statement(&mut self, tree: &Value) -> Result<(), Why> {
        if let Some(why) = self.catalog.everything() {
            return Err(why);
        }
        self.node(tree)
    }

    fn node(&mut self, node: &Value) -> Result<(), Why> {
        let Some(node) = node.as_object().filter(|node| node.len() == 1) else {
            return Err(Why::UnknownSyntax);
        };
        match node.iter().next() {
            Some((kind, Value::Object(members))) => self.message(kind, members),
            _ => Err(Why::UnknownSyntax),
        }
    }

    /// What a member holds: nodes, each within a member named `node`, which is null where nothing stands.
    fn nodes(&mut self, value: &Value) -> Result<(), Why> {
        match value {
            Value::Null => Ok(()),
            Value::Array(items) => items.iter().try_for_each(|item| self.nodes(item)),
            Value::Object(wrapper) => match (wrapper.len(), wrapper.get("node")) {
                (1, Some(Value::Null)) => Ok(()),
                (1, Some(node)) => self.node(node),
                _ => Err(Why::UnknownSyntax),
            },
            _ => Err(Why::UnknownSyntax),
        }
    }

    fn message(&mut self, kind: &str, message: &Map<String, Value>) -> Result<(), Why> {
        if LEAVES.contains(&kind) {
            return Ok(());
        }
        let Some(listed) = members(kind) else {
            let word = kind.strip_suffix("Stmt").unwrap_or_default();
            self.strongest = self.strongest.max(StatementKind::of(word.as_bytes()));
            return Err(unlisted(kind));
        };
        let hiding = self.hiding.len();
        self.look(kind, message)?;
        for (name, value) in message {
            let (_, how) = match listed.iter().find(|(listed, _)| listed == name) {
                Some(found) => found,
                None if is_place(name) || is_default(value) => continue,
                None => return Err(unlisted(name)),
            };
            match (how, value) {
                (As::Plain, _) | (As::Message(_), Value::Null) => {}
                (As::Nodes, value) => self.nodes(value)?,
                (As::Message(kind), Value::Object(message)) => self.message(kind, message)?,
                (As::Message(_), _) => return Err(Why::UnknownSyntax),
            }
        }
        self.hiding.truncate(hiding);
        Ok(())
    }

    /// What is to be said of a node beyond what its members say.
    fn look(&mut self, kind: &str, message: &Map<String, Value>) -> Result<(), Why> {
        let member = |name: &str| message.get(name).unwrap_or(&Value::Null);
        match kind {
            "SelectStmt" => {
                let is_distinct_on = match member("distinct_clause").as_array() {
                    Some(items) => items.iter().any(|item| !item["node"].is_null()),
                    None => false,
                };
                let is_limited = !member("limit_count").is_null() || !member("limit_offset").is_null();
                self.found.chance |= is_limited || is_distinct_on;
                self.with(member("with_clause"))
            }
            "RangeVar" => self.table(message),
            "FuncCall" => self.function(message),
            "ColumnRef" => self.column(&names_of(member("fields"))?),
            "AIndirection" => {
                names_of(member("indirection"))?.iter().try_for_each(|name| self.attribute(name))
            }
            "AExpr" => self.operator(&names_of(member("name"))?),
            "SubLink" => self.operator(&names_of(member("oper_name"))?),
            "SortBy" => self.operator(&names_of(member("use_op"))?),
            "TypeName" => match names_of(member("names"))?.last() {
                Some(name) if names::is_catalog_type(name) => Err(Why::AboutServer),
                Some(_) => Ok(()),
                None => Err(Why::UnknownSyntax),
            },
            "SqlvalueFunction" => value_function(member("op")),
            _ => Ok(()),
        }
    }

    /// Walks the queries of WITH. Its names hide tables from now on, and from one another as PostgreSQL has it.
    fn with(&mut self, clause: &Value) -> Result<(), Why> {
        let clause = match clause {
            Value::Null => return Ok(()),
            Value::Object(clause) => clause,
            _ => return Err(Why::UnknownSyntax),
        };
        let ctes = clause.get("ctes").and_then(Value::as_array).ok_or(Why::UnknownSyntax)?;
        let name = |cte: &Value| {
            let name = cte["node"]["CommonTableExpr"]["ctename"].as_str();
            name.map(str::to_owned).ok_or(Why::UnknownSyntax)
        };
        let is_recursive = clause.get("recursive") == Some(&Value::Bool(true));
        if is_recursive {
            for cte in ctes {
                self.hiding.push(name(cte)?);
            }
            return self.message("WithClause", clause);
        }
        for cte in ctes {
            self.nodes(cte)?;
            self.hiding.push(name(cte)?);
        }
        Ok(())
    }

    fn table(&mut self, table: &Map<String, Value>) -> Result<(), Why> {
        let text = |name: &str| table.get(name).and_then(Value::as_str).unwrap_or_default();
        let schema = Some(text("schemaname")).filter(|schema| !schema.is_empty());
        let name = text("relname");
        if schema.is_none() && self.hiding.iter().any(|hiding| hiding == name) {
            return Ok(());
        }
        if text("relpersistence") == "t" {
            return Err(Why::Write);
        }
        self.found = self.found.and(self.catalog.relation(schema, name)?);
        Ok(())
    }

    fn function(&mut self, call: &Map<String, Value>) -> Result<(), Why> {
        let names = names_of(call.get("funcname").unwrap_or(&Value::Null))?;
        let (schema, name) = match names[..] {
            [name] => (None, name),
            [schema, name] => (Some(schema), name),
            _ => return Err(Why::UnknownFunction),
        };
        let function = self.catalog.function(schema, name)?;
        let is_ordered = call.get("agg_order").is_some_and(|order| !is_default(order));
        let is_window = call.get("over").is_some_and(|over| !over.is_null());
        self.found = self.found.and(function.found);
        self.found.chance |= is_window || (function.depends_on_order && !is_ordered);
        Ok(())
    }

    fn column(&self, fields: &[&str]) -> Result<(), Why> {
        match fields {
            [.., name] if names::is_system_column(name) => Err(Why::SystemColumn),
            [_, .., name] => self.attribute(name),
            _ => Ok(()),
        }
    }

    /// `a.b` calls `b(a)` if there is no such column.
    fn attribute(&self, name: &str) -> Result<(), Why> {
        if names::is_system_column(name) {
            return Err(Why::SystemColumn);
        }
        self.catalog.attribute(name)
    }

    /// By its name, in whatever schema.
    fn operator(&self, names: &[&str]) -> Result<(), Why> {
        names.last().map_or(Ok(()), |name| self.catalog.operator(name))
    }
}

/// A dotted name. Stars and subscripts, which may stand among its parts, are passed over.
fn names_of(parts: &Value) -> Result<Vec<&str>, Why> {
    let parts = parts.as_array().ok_or(Why::UnknownSyntax)?;
    let strings = parts.iter().filter_map(|part| part["node"].get("String"));
    strings.map(|string| string["sval"].as_str().ok_or(Why::UnknownSyntax)).collect()
}

/// `CURRENT_USER` and its like ask about the session, others for the time.
fn value_function(op: &Value) -> Result<(), Why> {
    let op = op.as_i64().and_then(|op| ValueOp::try_from(i32::try_from(op).ok()?).ok());
    match op {
        Some(
            ValueOp::SvfopCurrentDate
            | ValueOp::SvfopCurrentTime
            | ValueOp::SvfopCurrentTimeN
            | ValueOp::SvfopCurrentTimestamp
            | ValueOp::SvfopCurrentTimestampN
            | ValueOp::SvfopLocaltime
            | ValueOp::SvfopLocaltimeN
            | ValueOp::SvfopLocaltimestamp
            | ValueOp::SvfopLocaltimestampN,
        ) => Ok(()),
        _ => Err(Why::AboutServer),
    }
}
