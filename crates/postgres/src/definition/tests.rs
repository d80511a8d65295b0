//! What servers write, at first and when told that, and what is not the same.

use super::*;

/// As PostgreSQL 15 writes a definition first, and once it has been told that.
const TOLD_AGAIN: &[(&str, &str)] = &[
    // v IN ('a', 'b')
    (
        "CHECK (((v)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))",
        "CHECK (((v)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])))",
    ),
    // v NOT IN (…), with everything in a string that could lead astray.
    (
        "CHECK (((v)::text <> ALL ((ARRAY['it''s, (x)::y ] ['::character varying, ')])::text[]'::character varying])::text[])))",
        "CHECK (((v)::text <> ALL (ARRAY[('it''s, (x)::y ] ['::character varying)::text, (')])::text[]'::character varying)::text])))",
    ),
    (
        "CHECK (((v)::text = ANY ((ARRAY['a\nb'::character varying, 'c\\'::character varying, NULL::character varying])::text[])))",
        "CHECK (((v)::text = ANY (ARRAY[('a\nb'::character varying)::text, ('c\\'::character varying)::text, (NULL::character varying)::text])))",
    ),
    // Several in one.
    (
        "CHECK (((v IS NULL) OR (((v)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])) AND ((w)::text = ANY ((ARRAY['c'::character varying(10), 'd'::character varying])::text[])))))",
        "CHECK (((v IS NULL) OR (((v)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])) AND ((w)::text = ANY (ARRAY[('c'::character varying(10))::text, ('d'::character varying)::text])))))",
    ),
    (
        "CHECK (\nCASE\n    WHEN ((v)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])) THEN (i > 0)\n    ELSE (i = ANY (ARRAY[1, 2]))\nEND)",
        "CHECK (\nCASE\n    WHEN ((v)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])) THEN (i > 0)\n    ELSE (i = ANY (ARRAY[1, 2]))\nEND)",
    ),
    // Other types, of several words, with a length, with a schema and in quotes.
    (
        "CHECK ((n = ANY ((ARRAY['-1'::integer, NULL::integer, i])::numeric[])))",
        "CHECK ((n = ANY (ARRAY[('-1'::integer)::numeric, (NULL::integer)::numeric, (i)::numeric])))",
    ),
    (
        "CHECK ((r = ANY ((ARRAY[1, 2])::double precision[])))",
        "CHECK ((r = ANY (ARRAY[(1)::double precision, (2)::double precision])))",
    ),
    (
        "CHECK ((ts = ANY ((ARRAY['2020-01-01 00:00:00'::timestamp(3) without time zone])::timestamp(3) with time zone[])))",
        "CHECK ((ts = ANY (ARRAY[('2020-01-01 00:00:00'::timestamp(3) without time zone)::timestamp(3) with time zone])))",
    ),
    (
        r#"CHECK ((e = ANY ((ARRAY[x, y])::"My S"."E,)'(""n"[])))"#,
        r#"CHECK ((e = ANY (ARRAY[(x)::"My S"."E,)'(""n", (y)::"My S"."E,)'(""n"])))"#,
    ),
    // Arrays of arrays, and casts of casts.
    (
        "CHECK ((x = ANY ((ARRAY[ARRAY[v, w], ARRAY['a'::character varying, v]])::text[])))",
        "CHECK ((x = ANY (ARRAY[ARRAY[(v)::text, (w)::text], ARRAY[('a'::character varying)::text, (v)::text]])))",
    ),
    (
        "CHECK (((v)::text = ANY (((ARRAY['a'::character varying(2), 'd'::character varying(2)])::character varying[])::text[])))",
        "CHECK (((v)::text = ANY (ARRAY[(('a'::character varying(2))::character varying)::text, (('d'::character varying(2))::character varying)::text])))",
    ),
    // Elsewhere than behind ANY.
    (
        "CHECK ((((ARRAY['a'::character varying, v])::text[])[1] = x))",
        "CHECK (((ARRAY[('a'::character varying)::text, (v)::text])[1] = x))",
    ),
    (
        "CHECK ((array_length((ARRAY[v, (w)::character varying])::text[], 1) = 2))",
        "CHECK ((array_length(ARRAY[(v)::text, ((w)::character varying)::text], 1) = 2))",
    ),
    // i BETWEEN 1 AND 2 AND b > 0
    ("CHECK ((((i >= 1) AND (i <= 2)) AND (b > 0)))", "CHECK (((i >= 1) AND (i <= 2) AND (b > 0)))"),
    (
        "CHECK ((((i >= 1) AND (i <= 2)) AND ((b >= 1) AND (b <= 2)) AND ok))",
        "CHECK (((i >= 1) AND (i <= 2) AND ((b >= 1) AND (b <= 2)) AND ok))",
    ),
    // v IN ('a', x) OR b > 0
    (
        "CHECK (((((v)::text = 'a'::text) OR ((v)::text = x)) OR (b > 0)))",
        "CHECK ((((v)::text = 'a'::text) OR ((v)::text = x) OR (b > 0)))",
    ),
    (
        "CHECK (((((i >= 1) AND (i <= 2)) AND (b > 0)) OR (s > 1)))",
        "CHECK ((((i >= 1) AND (i <= 2) AND (b > 0)) OR (s > 1)))",
    ),
    // What else is written down than checks.
    (
        " USING btree (i) WHERE ((v)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[]))",
        " USING btree (i) WHERE ((v)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text]))",
    ),
    (
        "CREATE TRIGGER g AFTER UPDATE ON public.t FOR EACH ROW WHEN ((((old.i >= 1) AND (old.i <= 2)) AND ((new.v)::text <> ALL ((ARRAY['a'::character varying])::text[])))) EXECUTE FUNCTION f('x''(ARRAY[')",
        "CREATE TRIGGER g AFTER UPDATE ON public.t FOR EACH ROW WHEN (((old.i >= 1) AND (old.i <= 2) AND ((new.v)::text <> ALL (ARRAY[('a'::character varying)::text])))) EXECUTE FUNCTION f('x''(ARRAY[')",
    ),
];

#[test]
fn what_a_server_writes_first_becomes_what_it_writes_once_told_that() {
    for (first, again) in TOLD_AGAIN {
        assert_eq!(settled(first), *again);
        assert_eq!(settled(again), *again, "it stays as it is");
    }
}

#[test]
fn what_is_not_the_same_stays_apart() {
    for (one, other) in [
        ("(ARRAY['a'::character varying])::text[]", "(ARRAY['b'::character varying])::text[]"),
        ("(ARRAY[a, b])::text[]", "(ARRAY[b, a])::text[]"),
        ("(ARRAY[a, b])::text[]", "(ARRAY[a, b])::character varying[]"),
        ("(ARRAY[a, b])::text[]", "ARRAY[(a)::text, b]"),
        ("(ARRAY[a, b])::text[]", "ARRAY[a, b]"),
        ("(ARRAY[a, b])::s.t[]", "(ARRAY[a, b])::t[]"),
        ("(ARRAY['a, b'::bpchar])::text[]", "(ARRAY['a'::bpchar, 'b'::bpchar])::text[]"),
        ("('(ARRAY[a])::text[]'::text)", "('ARRAY[(a)::text]'::text)"),
        (r#"("(ARRAY[a])::text[]" > 1)"#, r#"("ARRAY[(a)::text]" > 1)"#),
        ("(((a) AND (b)) OR (c))", "((a) AND ((b) OR (c)))"),
        ("(((a) OR (b)) AND (c))", "((a) OR (b) AND (c))"),
        ("((i > 1) AND ((b > 1) AND (s > 1)))", "((i > 1) AND (b > 1) AND (s > 1))"),
        ("(((a) AND (b)) AND (c))", "(((a) AND (c)) AND (b))"),
    ] {
        assert_ne!(settled(one), settled(other), "{one}");
    }
}

#[test]
fn what_is_not_understood_stays_as_it_is() {
    let deep = format!("{}((a) AND (b)) AND (c){}", "(".repeat(DEPTH_MAX), ")".repeat(DEPTH_MAX));
    for text in [
        "",
        "CHECK ((i = ANY (ARRAY[1, 2])))",
        "CHECK (((v)::text = ANY ((ARRAY[]::character varying[])::text[])))",
        "CHECK (((v)::text = ANY ((a)::text[])))",
        // A domain may be of arrays or not; a function's result is not its argument.
        "((ARRAY[v])::tarr)::text[]",
        "CASE WHEN ok THEN (ARRAY[v])::tarr ELSE ARRAY[]::text[] END",
        "(f(ARRAY[v])::text[])",
        "((ARRAY[v])::text[][1])",
        // Neither brackets nor quotes that match.
        "(((a) AND (b)) AND (c)",
        "(((a) AND (b)) AND (c)]",
        "((ARRAY[a])::text[]) AND 'b",
        "(((a) AND (b)) AND (c)))",
        // Not everything in brackets is a condition.
        "((SELECT a) AND (b))",
        deep.as_str(),
    ] {
        assert_eq!(settled(text), text);
    }
}
