//! What kinds of statements there are, and the reasons that make one the owner's.

/// What a statement is called. The order is that of strength: of several, the last counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum StatementKind {
    Select,
    Set,
    Transaction,
    Other,
    Copy,
    Insert,
    Update,
    Delete,
    Merge,
    Ddl,
}

impl StatementKind {
    /// By the first word of a statement.
    pub(crate) fn of(word: &[u8]) -> StatementKind {
        let mut lower = [0; 16];
        let Some(lower) = lower.get_mut(..word.len()) else { return StatementKind::Other };
        lower.copy_from_slice(word);
        lower.make_ascii_lowercase();
        match &*lower {
            b"select" | b"with" | b"values" | b"table" => StatementKind::Select,
            b"set" | b"reset" | b"show" => StatementKind::Set,
            b"begin" | b"start" | b"commit" | b"end" | b"rollback" | b"abort" | b"savepoint" | b"release" => {
                StatementKind::Transaction
            }
            b"copy" => StatementKind::Copy,
            b"insert" => StatementKind::Insert,
            b"update" => StatementKind::Update,
            b"delete" => StatementKind::Delete,
            b"merge" => StatementKind::Merge,
            b"create" | b"alter" | b"drop" | b"truncate" | b"comment" | b"grant" | b"revoke" | b"reindex"
            | b"cluster" | b"refresh" | b"security" | b"import" | b"reassign" => StatementKind::Ddl,
            _ => StatementKind::Other,
        }
    }

    /// The reason if statements of this kind are always the owner's.
    pub(super) fn is_owners(self) -> Option<Why> {
        match self {
            StatementKind::Select | StatementKind::Transaction => None,
            StatementKind::Set => Some(Why::Session),
            StatementKind::Copy => Some(Why::Copy),
            StatementKind::Other => Some(Why::Utility),
            StatementKind::Insert
            | StatementKind::Update
            | StatementKind::Delete
            | StatementKind::Merge
            | StatementKind::Ddl => Some(Why::Write),
        }
    }

    /// For labels and people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            StatementKind::Select => "select",
            StatementKind::Set => "set",
            StatementKind::Transaction => "transaction",
            StatementKind::Other => "other",
            StatementKind::Copy => "copy",
            StatementKind::Insert => "insert",
            StatementKind::Update => "update",
            StatementKind::Delete => "delete",
            StatementKind::Merge => "merge",
            StatementKind::Ddl => "ddl",
        }
    }
}

/// Why a text is the owner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// It writes, or makes a table.
    Write,
    /// It locks rows.
    Locks,
    /// It controls a transaction in a way that is more than beginning a read-only one, or ending one.
    Transaction,
    /// It is COPY.
    Copy,
    /// It is about the session: settings.
    Session,
    /// It is none of the statements that read: EXPLAIN, CALL, cursors, and the like.
    Utility,
    /// It calls a function that may write.
    Volatile,
    /// It calls a function that the catalog does not have, or whose body cannot be judged.
    UnknownFunction,
    /// It asks about the server, the session or the catalog rather than for data.
    AboutServer,
    /// It uses an operator whose function may write.
    Operator,
    /// The database has casts, comparisons or domains of its own whose functions may write: nothing is a read.
    Implicit,
    /// The catalog has no such table.
    UnknownTable,
    /// It reads a table that only the owner has.
    NotMigrated,
    /// It reads a table with row-level security, which may be different on the two sides.
    RowSecurity,
    /// It reads the system's catalog.
    SystemCatalog,
    /// It reads no table at all.
    NoTable,
    /// It uses a system column.
    SystemColumn,
    /// It uses syntax that is not known to be harmless.
    UnknownSyntax,
    /// It cannot be parsed, or where its strings end depends on a setting.
    Unparsed,
    /// It holds no statement.
    Empty,
    /// It is too long to be looked into.
    TooLong,
    /// Nothing is known of the database.
    NoCatalog,
}

impl Why {
    /// For labels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Why::Write => "write",
            Why::Locks => "locks",
            Why::Transaction => "transaction",
            Why::Copy => "copy",
            Why::Session => "session",
            Why::Utility => "utility",
            Why::Volatile => "volatile_function",
            Why::UnknownFunction => "unknown_function",
            Why::AboutServer => "about_server",
            Why::Operator => "operator",
            Why::Implicit => "implicit_function",
            Why::UnknownTable => "unknown_table",
            Why::NotMigrated => "not_migrated",
            Why::RowSecurity => "row_security",
            Why::SystemCatalog => "system_catalog",
            Why::NoTable => "no_table",
            Why::SystemColumn => "system_column",
            Why::UnknownSyntax => "unknown_syntax",
            Why::Unparsed => "unparsed",
            Why::Empty => "empty",
            Why::TooLong => "too_long",
            Why::NoCatalog => "no_catalog",
        }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Why::Write => "it writes",
            Why::Locks => "it locks rows",
            Why::Transaction => "it controls a transaction",
            Why::Copy => "it is COPY",
            Why::Session => "it is about the session's settings",
            Why::Utility => "it is no statement that reads",
            Why::Volatile => "it calls a function that may write",
            Why::UnknownFunction => "it calls a function that is not known",
            Why::AboutServer => "it asks about the server or the session",
            Why::Operator => "it uses an operator whose function may write",
            Why::Implicit => "casts, comparisons or domains of this database may write",
            Why::UnknownTable => "it names a table that is not known",
            Why::NotMigrated => "it reads a table that is not migrated",
            Why::RowSecurity => "it reads a table with row-level security",
            Why::SystemCatalog => "it reads the system's catalog",
            Why::NoTable => "it reads no table",
            Why::SystemColumn => "it uses a system column",
            Why::UnknownSyntax => "it uses syntax that is not known to be harmless",
            Why::Unparsed => "it cannot be parsed for certain",
            Why::Empty => "it holds no statement",
            Why::TooLong => "it is too long",
            Why::NoCatalog => "nothing is known of the database",
        })
    }
}
