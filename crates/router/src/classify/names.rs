//! Names of PostgreSQL's own that mean something: functions and types that ask about the server, and columns of the
//! system. What a function of the system does, if it is not here, its volatility says.

/// Volatile, but for other reasons than that they write: chance, the clock, sleep. Some are of `pgcrypto` and
/// `uuid-ossp`.
const CHANCE: &[&str] = &[
    "array_sample",
    "array_shuffle",
    "clock_timestamp",
    "gen_random_bytes",
    "gen_random_uuid",
    "gen_salt",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "random",
    "random_normal",
    "timeofday",
    "uuid_generate_v1",
    "uuid_generate_v1mc",
    "uuid_generate_v4",
    "uuidv4",
    "uuidv7",
];

/// Functions that today's parser makes of syntax for which older servers have others.
pub(super) const NEWER: &[(&str, &str)] =
    &[("extract", "date_part"), ("similar_to_escape", "similar_escape")];

/// Aggregates whose result depends on the order of their input.
const BY_ORDER: &[&str] = &[
    "array_agg",
    "json_agg",
    "json_agg_strict",
    "json_object_agg",
    "json_object_agg_strict",
    "jsonb_agg",
    "jsonb_agg_strict",
    "jsonb_object_agg",
    "jsonb_object_agg_strict",
    "string_agg",
    "xmlagg",
];

const ABOUT_SERVER: &[&str] = &[
    "col_description",
    "current_catalog",
    "current_database",
    "current_query",
    "current_role",
    "current_schema",
    "current_schemas",
    "current_setting",
    "current_user",
    "currtid2",
    "currval",
    "format_type",
    "getdatabaseencoding",
    "getpgusername",
    "icu_unicode_version",
    "lastval",
    "mxid_age",
    "obj_description",
    "row_security_active",
    "satisfies_hash_partition",
    "session_user",
    "set_config",
    "shobj_description",
    "system_user",
    "unicode_version",
    "user",
    "version",
];

const ABOUT_SERVER_PREFIXES: &[&str] = &[
    "binary_upgrade",
    "cursor_to_xml",
    "database_to_xml",
    "has_",
    "inet_client",
    "inet_server",
    "lo_",
    "nextval",
    "pg_",
    "query_to_xml",
    "schema_to_xml",
    "setval",
    "table_to_xml",
    "to_reg",
    "txid_",
];

/// Those of the prefix `pg_` that are about their argument alone.
const ABOUT_DATA: &[&str] =
    &["pg_size_bytes", "pg_size_pretty", "pg_sleep", "pg_sleep_for", "pg_sleep_until", "pg_typeof"];

/// Types whose values are looked up in the system's catalog, and have other numbers on the other side. Text search
/// configurations and dictionaries are not among them: every search names one, and both sides have them, like types.
const CATALOG_TYPES: &[&str] = &[
    "regclass",
    "regcollation",
    "regdatabase",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
];

/// Of a function in `pg_catalog`.
pub(super) fn is_about_server(function: &str) -> bool {
    let starts = || ABOUT_SERVER_PREFIXES.iter().any(|prefix| function.starts_with(prefix));
    // Casts to such a type, and its input and output, are functions too.
    let is_type = || CATALOG_TYPES.iter().any(|name| function.starts_with(name));
    (ABOUT_SERVER.contains(&function) || starts() || is_type()) && !ABOUT_DATA.contains(&function)
}

/// Of a volatile function in C: it writes nothing all the same, but its result depends on chance.
pub(super) fn is_chance(function: &str) -> bool {
    CHANCE.contains(&function)
}

/// Of a function in `pg_catalog` that is called volatile: one form of it was, by an oversight, before PostgreSQL 17.
pub(super) fn is_called_volatile_wrongly(function: &str) -> bool {
    function == "timezone"
}

/// Of an aggregate in `pg_catalog`.
pub(super) fn depends_on_order(function: &str) -> bool {
    BY_ORDER.contains(&function)
}

/// Columns that every table has: they tell where a row is and who wrote it, which the two sides do not share.
pub(super) fn is_system_column(name: &str) -> bool {
    matches!(name, "ctid" | "xmin" | "xmax" | "cmin" | "cmax" | "tableoid")
}

/// See [`CATALOG_TYPES`].
pub(super) fn is_catalog_type(name: &str) -> bool {
    CATALOG_TYPES.contains(&name)
}

/// Of a function in C that is not volatile: it runs statements that it is given as text.
pub(super) fn runs_text(function: &str) -> bool {
    function.starts_with("crosstab") || matches!(function, "connectby" | "xpath_table")
}

/// Of a schema, or of a table without one.
pub(super) fn is_system(name: &str) -> bool {
    name.starts_with("pg_") || name == "information_schema"
}

/// Operators that are called without being named: by ORDER BY, GROUP BY, USING, IN, CASE.
pub(super) fn is_implicit_operator(name: &str) -> bool {
    matches!(name, "=" | "<>" | "<" | ">" | "<=" | ">=")
}
