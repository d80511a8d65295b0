//! Statements, and what they do to their session.

use super::*;
use proptest::prelude::*;

fn changes(sql: &str) -> Vec<Change> {
    read(sql.as_bytes()).changes
}

fn set(name: &str, sql: &str) -> Change {
    Change::Set { name: name.into(), sql: sql.into() }
}

#[test]
fn settings_are_carried_by_name() {
    for (sql, name) in [
        ("SET work_mem = '1MB'", "work_mem"),
        ("SET TIME ZONE 'UTC'", "timezone"),
        ("SET NAMES 'utf8'", "client_encoding"),
        ("SET ROLE bob", "role"),
        ("SET SESSION AUTHORIZATION bob", "session_authorization"),
        ("SET my.thing = 'x'", "my.thing"),
        ("SET \"TimeZone\" = 'UTC'", "timezone"),
    ] {
        assert_eq!(changes(sql), [set(name, sql)], "{sql}");
    }
    for (sql, name) in [
        ("set session WORK_MEM to default", "work_mem"),
        ("SET a.b = DEFAULT ;", "a.b"),
        ("SET TIME ZONE LOCAL", "timezone"),
        ("SET SESSION AUTHORIZATION DEFAULT", "session_authorization"),
        ("RESET work_mem", "work_mem"),
    ] {
        let reset = Change::Reset { name: name.into(), sql: sql.trim_end_matches([' ', ';']).into() };
        assert_eq!(changes(sql), [reset], "{sql}");
    }
    for sql in ["SET search_path TO \"default\"", "SET search_path TO default, public", "SET x = 'default'"] {
        assert!(matches!(&changes(sql)[..], [Change::Set { .. }]), "{sql}");
    }
    for local in ["SET LOCAL x = 1", "SET TRANSACTION READ ONLY", "SET CONSTRAINTS ALL DEFERRED"] {
        assert_eq!(changes(local), [], "{local}");
    }
}

#[test]
fn each_mode_of_a_sessions_transactions_is_a_setting() {
    let level = set("default_transaction_isolation", "SET default_transaction_isolation = 'repeatable read'");
    let read_only = set("default_transaction_read_only", "SET default_transaction_read_only = 'on'");
    let deferrable = set("default_transaction_deferrable", "SET default_transaction_deferrable = 'off'");
    for (modes, expected) in [
        ("ISOLATION LEVEL REPEATABLE READ", &[level.clone()][..]),
        ("read only", std::slice::from_ref(&read_only)),
        (
            "READ ONLY, NOT DEFERRABLE isolation level\nrepeatable read",
            &[read_only.clone(), deferrable, level],
        ),
    ] {
        assert_eq!(
            changes(&format!("SET SESSION CHARACTERISTICS AS TRANSACTION {modes}")),
            expected,
            "{modes}"
        );
    }
    let unknown = read(b"SET SESSION CHARACTERISTICS AS TRANSACTION READ BACKWARDS");
    assert_eq!((unknown.changes, unknown.pin), (vec![], Some(Pin::Setting)));
}

#[test]
fn whom_a_session_or_a_transaction_is_for_is_seen() {
    for (sql, tenants) in [
        ("SET segue.tenant = 'a'", &["a"][..]),
        ("SET SESSION segue.tenant TO a; SET LOCAL segue.tenant = 'b'", &["a", "b"]),
        ("SET LOCAL \"segue\".\"tenant\" = 'a'", &["a"]),
        ("SET LOCAL segue.tenant = 'it''s'", &[]),
        ("SET segue.other = 'a'", &[]),
    ] {
        assert_eq!(read(sql.as_bytes()).tenants, tenants, "{sql}");
    }
}

#[test]
fn a_plain_text_is_plain_whatever_its_constants_are() {
    for (sql, plain) in [
        ("SELECT a FROM t WHERE b = 1", Some(true)),
        ("INSERT INTO t VALUES (1, 'x')", Some(true)),
        ("BEGIN", Some(false)),
        ("SELECT 1; SELECT 2", Some(false)),
        ("SET LOCAL x = 1", Some(false)),
        ("SET LOCAL segue.tenant = 'it''s'", None),
        ("SET LOCAL search_path = 'public'", None),
        ("SET LOCAL TimeZone = 'UTC'", None),
        ("DISCARD TEMP", None),
        ("SET x = 1", None),
        ("RESET x", None),
        ("SELECT 1; SET x = 1", None),
        ("COMMIT", Some(false)),
        ("END;", Some(false)),
        ("COMMIT AND CHAIN", None),
        ("COMMIT; SELECT 1", None),
        ("ROLLBACK", None),
        ("ROLLBACK TO s", None),
        ("SELECT 1 INTO TEMP t", None),
        ("SELECT set_config('a', 'b', true)", None),
        ("SELECT pg_advisory_lock(1)", None),
    ] {
        assert_eq!(super::plain(sql.as_bytes()), plain, "{sql}");
    }
}

#[test]
fn every_statement_of_a_string_counts() {
    let found = changes("/* a; b */ set a.b = ';' ; -- c;\n select 1; RESET ALL;;");
    assert_eq!(found, [set("a.b", "set a.b = ';'"), Change::ResetAll]);
}

#[test]
fn channels_and_prepared_statements_are_known() {
    assert_eq!(
        changes("LISTEN \"A b\""),
        [Change::Listen { channel: "A b".into(), sql: "LISTEN \"A b\"".into() }]
    );
    assert_eq!(changes("listen Ab")[0], Change::Listen { channel: "ab".into(), sql: "listen Ab".into() });
    assert_eq!(changes("UNLISTEN *"), [Change::UnlistenAll]);
    assert_eq!(changes("UNLISTEN a"), [Change::Unlisten { channel: "a".into() }]);
    assert_eq!(changes("DEALLOCATE PREPARE x"), [Change::Deallocate { name: "x".into() }]);
    assert_eq!(changes("DEALLOCATE ALL"), [Change::DeallocateAll]);
    assert_eq!(changes("DISCARD ALL"), [Change::DiscardAll]);
    assert_eq!(changes("PREPARE TRANSACTION 'x'"), []);
    assert!(matches!(&changes("PREPARE q AS SELECT 1")[0], Change::Prepare { name, .. } if name == "q"));
}

#[test]
fn each_deallocation_of_a_string_is_found_where_it_is() {
    let sql = "/* a */ DEALLOCATE a; INSERT INTO t VALUES ('DEALLOCATE b'); deallocate prepare \"B\" ;DEALLOCATE ALL";
    let found = deallocations(sql.as_bytes());
    let found: Vec<_> = found.into_iter().map(|(span, name)| (&sql[span], name)).collect();
    assert_eq!(found, [("DEALLOCATE a", "a".to_owned()), ("deallocate prepare \"B\"", "B".to_owned())]);
}

#[test]
fn a_text_that_only_deallocates_is_known() {
    for (sql, name) in [
        ("/* a */ deallocate prepare \"A\" ;", Some("A")),
        ("DEALLOCATE ALL", None),
        ("DEALLOCATE a; SELECT 1", None),
        ("SELECT deallocate", None),
        ("", None),
    ] {
        assert_eq!(deallocation(sql.as_bytes()).as_deref(), name, "{sql}");
    }
}

#[test]
fn what_later_texts_are_parsed_by_is_seen() {
    let parsing = |sql: &str| read(sql.as_bytes()).parsing;
    for sql in [
        "SELECT 1",
        "SET work_mem = '1MB'",
        "SET LOCAL x.timezone = 'a'",
        "SELECT set_config('role', 'a', true), set_config('app.user', 'timezone', true)",
        "BEGIN; COMMIT",
    ] {
        assert_eq!(parsing(sql), Parsing::Same, "{sql}");
    }
    for sql in [
        "SET TIME ZONE 'UTC'",
        "SET LOCAL \"TimeZone\" = 'UTC'",
        "RESET timezone",
        "RESET ALL",
        "SET NAMES 'latin1'",
        "SET LOCAL ROLE a",
        "SET LOCAL search_path = a",
        "SET LOCAL search_path = a; SET LOCAL search_path = b",
    ] {
        assert!(matches!(parsing(sql), Parsing::By(_)) && parsing(sql) == parsing(sql), "{sql}");
    }
    assert_ne!(parsing("SET LOCAL DateStyle = 'SQL'"), parsing("SET LOCAL DateStyle = 'ISO'"));
    for sql in [
        "SELECT set_config('TimeZone', $1, true)",
        "SELECT \"set_config\"($1, 'a', true)",
        "DISCARD ALL; SET ROLE a",
    ] {
        assert_eq!(parsing(sql), Parsing::Unknown, "{sql}");
    }
}

#[test]
fn what_cannot_be_carried_pins() {
    for (sql, pin) in [
        ("CREATE TEMP TABLE t (i int)", Some(Pin::Temporary)),
        ("create table pg_temp.t (i int)", Some(Pin::Temporary)),
        ("SELECT 1 INTO TEMPORARY t", Some(Pin::Temporary)),
        ("SELECT temp FROM weather", None),
        ("SELECT 'CREATE TEMP TABLE'", None),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Some(Pin::HoldCursor)),
        ("DECLARE c CURSOR FOR SELECT 1", None),
        ("SELECT pg_advisory_lock(1)", Some(Pin::AdvisoryLock)),
        ("SELECT pg_try_advisory_lock(1)", Some(Pin::AdvisoryLock)),
        ("SELECT pg_advisory_xact_lock(1)", None),
        ("SELECT set_config('a.b', 'x', false)", Some(Pin::Setting)),
        ("SELECT set_config('a.b', $1, true)", None),
        ("SELECT set_config('a.b', 'x', true), set_config('a.c', 'x', $1)", Some(Pin::Setting)),
        ("SELECT set_config('a.b', coalesce(current_setting('a.b', true), 'x'), false)", Some(Pin::Setting)),
        ("SELECT set_config('a.b', set_config('a.c', 'x', false), true)", Some(Pin::Setting)),
        ("SELECT set_config('a.b', coalesce(current_setting('a.b', false), 'x'), TRUE )", None),
        ("SELECT set_config(setting_name => 'a.b', new_value => 'x', is_local => true)", None),
        ("SELECT set_config('a.b', 'x', is_local => false)", Some(Pin::Setting)),
        ("SELECT set_config('a.b', 'x', true AND false)", Some(Pin::Setting)),
        ("SELECT set_config('a.b', ',true)', $1)", Some(Pin::Setting)),
        ("SELECT \"set_config\"('a.b', 'x', false)", Some(Pin::Setting)),
        ("SELECT pg_catalog.\"set_config\"('a.b', 'x', true)", None),
        ("SELECT set_config('search_path', 'pg_temp', true)", Some(Pin::Setting)),
        ("SELECT \"pg_advisory_lock\"(1)", Some(Pin::AdvisoryLock)),
        ("CREATE TABLE \"pg_temp\".\"x\" (i int)", Some(Pin::Temporary)),
        ("CREATE TABLE pg_temp_3.x (i int)", Some(Pin::Temporary)),
        ("SET search_path = pg_temp, public", Some(Pin::Temporary)),
        ("SET LOCAL search_path TO \"$user\", 'pg_temp'", Some(Pin::Temporary)),
        ("SET SCHEMA 'pg_temp'", Some(Pin::Temporary)),
        ("SET search_path = public, pg_temp", None),
        ("SELECT dblink_connect('a', 'dbname=b')", Some(Pin::Setting)),
        ("SELECT set_limit(0.5)", Some(Pin::Setting)),
        ("LOAD 'x'", Some(Pin::Setting)),
    ] {
        assert_eq!(read(sql.as_bytes()).pin, pin, "{sql}");
    }
}

#[test]
fn only_single_statements_that_cannot_commit_are_repeated() {
    for (sql, repeatable) in [
        ("INSERT INTO t VALUES (1)", true),
        (" -- x\n update t set a = 1;", true),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", true),
        ("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)", false),
        ("BEGIN; INSERT INTO t VALUES (1)", false),
        ("CALL p()", false),
        ("DO $$ BEGIN COMMIT; INSERT INTO t VALUES (1); END $$", false),
        ("COPY t FROM STDIN", false),
        ("", false),
    ] {
        assert_eq!(read(sql.as_bytes()).repeatable, repeatable, "{sql}");
    }
}

#[test]
fn bytes_inside_strings_are_not_words() {
    for sql in [
        "SELECT E'\\'; SET a = 1; --'",
        "SELECT $x$; SET a = 1; $$ $x$",
        "SELECT \"; SET a = 1\"",
        "SELECT 1 /* /* ; */ ; SET a = 1 */",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
    ] {
        let effects = read(sql.as_bytes());
        assert_eq!((effects.changes, effects.pin), (vec![], None), "{sql}");
    }
}

#[test]
fn what_decides_on_changes_is_seen_and_where_it_stands() {
    use Ending::{Commit, Rollback, RollbackTo};
    for (sql, endings) in [
        ("ROLLBACK", &[(0, Rollback)][..]),
        ("abort", &[(0, Rollback)]),
        ("rollback work to savepoint a", &[(0, RollbackTo)]),
        ("ROLLBACK TO a", &[(0, RollbackTo)]),
        ("COMMIT", &[(0, Commit)]),
        ("end and chain", &[(0, Commit)]),
        ("PREPARE TRANSACTION 'x'", &[(0, Commit)]),
        ("COMMIT PREPARED 'x'; ROLLBACK PREPARED 'x'", &[]),
        ("BEGIN; SAVEPOINT a; RELEASE a", &[]),
        ("SET a = 1; COMMIT; SET b = 1; SET c = 1; ROLLBACK", &[(1, Commit), (3, Rollback)]),
    ] {
        assert_eq!(read(sql.as_bytes()).endings, endings, "{sql}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(a in proptest::collection::vec(any::<u8>(), 0..64), b in "[-/*'\"$;eE\\\\. a-d_]{0,40}",
                              c in "(set|reset|listen|prepare|declare|deallocate) ?[.\"a-c ;*]{0,12}") {
        read(&a);
        read(b.as_bytes());
        read(c.as_bytes());
    }
}
