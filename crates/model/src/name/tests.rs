//! Names and patterns, as tables and as properties.

use proptest::prelude::*;

use super::*;

#[test]
fn names_are_read_as_sql_reads_them() {
    for (text, schema, name, shown) in [
        ("public.orders", "public", "orders", "public.orders"),
        ("orders", "public", "orders", "public.orders"),
        ("CRM.Customer", "crm", "customer", "crm.customer"),
        (r#""CRM"."Customer""#, "CRM", "Customer", r#""CRM"."Customer""#),
        (r#"crm."Customer""#, "crm", "Customer", r#"crm."Customer""#),
        (r#""a.b"."c""d""#, "a.b", "c\"d", r#""a.b"."c""d""#),
        (r#""lower"."quoted""#, "lower", "quoted", "lower.quoted"),
        ("größe.maß", "größe", "maß", "größe.maß"),
        ("ÄRGER.x", "Ärger", "x", r#""Ärger".x"#),
        ("public.order", "public", "order", "public.order"),
        (r#""user".t"#, "user", "t", r#""user".t"#),
        (r#"public."*""#, "public", "*", r#"public."*""#),
        (r#""2024"."1""#, "2024", "1", r#""2024"."1""#),
        ("  s.t$1 ", "s", "t$1", "s.t$1"),
        ("日本.表", "日本", "表", "日本.表"),
    ] {
        let parsed = QualifiedName::parse(text).unwrap();
        assert_eq!(parsed, QualifiedName::new(schema, name), "{text}");
        assert_eq!(parsed.to_string(), shown, "{text}");
    }
}

#[test]
fn what_is_not_a_name_is_refused_with_the_reason() {
    let long = "x".repeat(64);
    let unquotable = |character, part: &str| NameError::Unquotable { character, part: part.to_owned() };
    for (text, error) in [
        ("", NameError::Empty),
        ("   ", NameError::Empty),
        (".orders", NameError::Empty),
        ("public.", NameError::Empty),
        (r#"public."""#, NameError::Empty),
        (r#""public.orders"#, NameError::Unclosed),
        (r#""public"orders"#, NameError::AfterQuote('o')),
        (r#"pub"lic".x"#, NameError::AfterQuote('"')),
        ("order-items", unquotable('-', "order-items")),
        ("public.2024", unquotable('2', "2024")),
        ("public.a b", unquotable(' ', "a b")),
        ("public.*", NameError::Wildcard),
        ("db.public.orders", NameError::TooManyParts),
        ("a.b.", NameError::Empty),
        (long.as_str(), NameError::TooLong(long.clone())),
        ("a\0b", NameError::Nul),
    ] {
        assert_eq!(QualifiedName::parse(text), Err(error), "{text:?}");
    }
}

#[test]
fn the_length_limit_counts_bytes() {
    assert!(QualifiedName::parse(&"x".repeat(63)).is_ok());
    assert!(QualifiedName::parse(&"ä".repeat(31)).is_ok());
    assert!(QualifiedName::parse(&"ä".repeat(32)).is_err());
}

#[test]
fn patterns_match_whole_names() {
    for (pattern, schema, name, matches) in [
        ("public.*", "public", "orders", true),
        ("public.*", "crm", "orders", false),
        ("PUBLIC.Order_*", "public", "order_items", true),
        ("public.order_*", "public", "order", false),
        ("public.*_log", "public", "audit_log", true),
        ("public.*_log", "public", "audit_log_2", false),
        ("public.a*b*c", "public", "axxbyybc", true),
        ("public.a*b*c", "public", "acb", false),
        ("public.ab*ba", "public", "aba", false),
        ("public.**", "public", "", true),
        ("*.*", "crm", "Customer", true),
        ("*.orders", "crm", "orders", true),
        ("shop_*.orders", "shop_eu", "orders", true),
        ("order_*", "public", "order_items", true),
        (r#"public."*""#, "public", "orders", false),
        (r#"public."*""#, "public", "*", true),
        ("public.orders", "public", "orders", true),
        ("public.orders", "public", "orders2", false),
    ] {
        let pattern = Pattern::parse(pattern).unwrap();
        assert_eq!(
            pattern.matches(&QualifiedName::new(schema, name)),
            matches,
            "{pattern} on {schema}.{name}"
        );
    }
}

#[test]
fn a_lone_wildcard_is_refused() {
    assert_eq!(Pattern::parse("*"), Err(NameError::BareWildcard));
}

fn catalog_name() -> impl Strategy<Value = String> {
    "[^\\x00]{1,15}".prop_filter("at most 63 bytes", |name| name.len() <= IDENTIFIER_BYTES_MAX)
}

proptest! {
    #[test]
    fn a_printed_name_reads_back(schema in catalog_name(), name in catalog_name()) {
        let table = QualifiedName::new(schema, name);
        prop_assert_eq!(QualifiedName::parse(&table.to_string()), Ok(table.clone()));
        prop_assert_eq!(QualifiedName::parse(&table.sql()), Ok(table));
    }

    #[test]
    fn a_printed_name_is_a_pattern_for_itself_only(schema in catalog_name(), name in catalog_name(), other in catalog_name()) {
        let table = QualifiedName::new(schema.clone(), name.clone());
        let pattern = Pattern::parse(&table.to_string()).unwrap();
        prop_assert_eq!(pattern.exact(), Some(table.clone()));
        prop_assert!(pattern.matches(&table));
        prop_assert_eq!(pattern.matches(&QualifiedName::new(schema, other.clone())), other == name);
    }

    #[test]
    fn a_pattern_prints_as_itself(text in "[a-z_*]{1,6}\\.[a-z_*]{1,6}") {
        // But for a schema that is a reserved word.
        let (schema, name) = text.split_once('.').unwrap();
        let quoted = if RESERVED.contains(&schema) { format!("\"{schema}\".{name}") } else { text.clone() };
        prop_assert_eq!(Pattern::parse(&text).unwrap().to_string(), quoted);
    }

    #[test]
    fn a_pattern_matches_like_the_obvious_recursion(pattern in "[ab*]{1,7}", text in "[ab]{0,7}") {
        fn obvious(pattern: &[u8], text: &[u8]) -> bool {
            match (pattern, text) {
                ([], []) => true,
                ([b'*', rest @ ..], _) => (0..=text.len()).any(|skip| obvious(rest, &text[skip..])),
                ([p, rest @ ..], [t, tail @ ..]) if p == t => obvious(rest, tail),
                _ => false,
            }
        }
        let parsed = Pattern::parse(&format!("s.{pattern}")).unwrap();
        prop_assert_eq!(parsed.matches(&QualifiedName::new("s", text.clone())), obvious(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>()) {
        let _ = QualifiedName::parse(&text);
        let _ = Pattern::parse(&text);
    }
}
