//! How a side orders the text of a column, and whether another one orders it alike. No I/O.

/// The rules by which a side orders the text of a column: those of its collation, or of the database's default one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Collation {
    /// `b`uiltin, lib`c` or `i`cu.
    pub(super) provider: char,
    /// `LC_COLLATE`. Before PostgreSQL 15 the locale of ICU is there, too.
    pub(super) collate: String,
    /// `LC_CTYPE`.
    pub(super) ctype: String,
    /// The locale of the providers that are no libc; empty where there is none.
    pub(super) locale: String,
    /// What is added to the rules of ICU's locale.
    pub(super) rules: String,
    /// The version of the library's rules, which is also the one that the indexes were built under. `None` if a server does
    /// not tell one of the two, or if they differ: then an index has one order, and a comparison another.
    pub(super) version: Option<String>,
    /// Only texts of equal bytes are equal.
    pub(super) deterministic: bool,
    /// `server_encoding`.
    pub(super) encoding: String,
}

impl Collation {
    /// The order is that of the bytes as the server stores them. The builtin provider knows no other one.
    fn compares_bytes(&self) -> bool {
        match self.provider {
            'b' => true,
            'c' => matches!(self.collate.as_str(), "C" | "POSIX"),
            _ => false,
        }
    }

    /// The order is that of UTF-8's bytes, in which text reaches us.
    pub(super) fn is_bytewise(&self) -> bool {
        self.compares_bytes() && matches!(self.encoding.as_str(), "UTF8" | "LATIN1" | "SQL_ASCII")
    }

    /// The provider's names for the rules.
    fn named(&self) -> [String; 3] {
        let rules = self.rules.clone();
        match self.provider {
            'c' => [plain(&self.collate), plain(&self.ctype), rules],
            _ if self.locale.is_empty() => [self.collate.clone(), String::new(), rules],
            _ => [self.locale.clone(), String::new(), rules],
        }
    }

    /// Whether it is known that `other` puts any two texts into the same order.
    ///
    /// The order of bytes never changes. Any other one is a library's, and the same only if provider, locale, version and
    /// encoding are. glibc gives no version to its `C.UTF-8`, whose order has changed; other libraries give none at all.
    pub(super) fn orders_like(&self, other: &Collation) -> bool {
        if !(self.deterministic && other.deterministic) {
            return false;
        }
        let same_encoding = self.encoding == other.encoding;
        match (self.compares_bytes(), other.compares_bytes()) {
            (true, true) => same_encoding || (self.is_bytewise() && other.is_bytewise()),
            (false, false) => {
                let same_version = self.version.is_some() && self.version == other.version;
                let same_rules = self.provider == other.provider && self.named() == other.named();
                same_encoding && same_version && same_rules
            }
            (true, false) | (false, true) => false,
        }
    }
}

/// The name of a locale of libc, with its encoding as `locale -a` writes it: `en_US.UTF-8` and `en_US.utf8` are one.
fn plain(name: &str) -> String {
    let Some((language, rest)) = name.split_once('.') else { return name.to_owned() };
    let (encoding, modifier) = rest.split_at(rest.find('@').unwrap_or(rest.len()));
    let encoding: String = encoding.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{language}.{}{modifier}", encoding.to_ascii_lowercase())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A collation of a database in UTF-8; a `version` that is empty is not known.
    pub(in crate::catalog) fn of(provider: char, locale: &str, version: &str) -> Collation {
        let is_libc = provider == 'c';
        let (libc, other) = if is_libc { (locale, "") } else { ("", locale) };
        Collation {
            provider,
            collate: libc.into(),
            ctype: libc.into(),
            locale: other.into(),
            rules: String::new(),
            version: (!version.is_empty()).then(|| version.to_owned()),
            deterministic: true,
            encoding: "UTF8".into(),
        }
    }

    fn alike(a: &Collation, b: &Collation) -> bool {
        assert_eq!(a.orders_like(b), b.orders_like(a), "{a:?} and {b:?}");
        a.orders_like(b)
    }

    #[test]
    fn the_order_of_a_library_is_that_of_the_same_rules_in_the_same_version() {
        let glibc = of('c', "en_US.UTF-8", "2.36");
        assert!(alike(&glibc, &glibc));
        assert!(alike(&glibc, &of('c', "en_US.utf8", "2.36")));
        assert!(!alike(&glibc, &of('c', "en_US.UTF-8", "2.28")));
        assert!(!alike(&glibc, &of('c', "de_DE.UTF-8", "2.36")));
        assert!(!alike(&glibc, &Collation { ctype: "C".into(), ..glibc.clone() }));
        assert!(!alike(&glibc, &Collation { encoding: "LATIN1".into(), ..glibc.clone() }));
        let icu = of('i', "en-US", "153.120");
        assert!(alike(&icu, &icu));
        assert!(!alike(&icu, &of('i', "en-US", "153.121")));
        assert!(!alike(&icu, &of('i', "sv", "153.120")));
        assert!(!alike(&icu, &Collation { rules: "&a < g".into(), ..icu.clone() }));
        assert!(!alike(&icu, &Collation { provider: 'c', collate: "en-US".into(), ..icu.clone() }));
    }

    #[test]
    fn a_version_that_is_not_known_is_not_the_same() {
        for locale in ["C.UTF-8", "en_US.UTF-8"] {
            let unknown = of('c', locale, "");
            assert!(!alike(&unknown, &unknown), "{locale}");
            assert!(!alike(&unknown, &of('c', locale, "2.36")), "{locale}");
        }
        assert!(!alike(&of('i', "sv", ""), &of('i', "sv", "")));
    }

    #[test]
    fn bytes_are_ordered_alike_whoever_compares_them() {
        let bytes = [
            of('c', "C", ""),
            of('c', "POSIX", ""),
            of('b', "C", "1"),
            of('b', "C.UTF-8", "1"),
            of('b', "C.UTF-8", "2"),
        ];
        for (a, b) in bytes.iter().flat_map(|a| bytes.iter().map(move |b| (a, b))) {
            assert!(alike(a, b), "{a:?} and {b:?}");
        }
        // What a character is does not matter to the order.
        assert!(alike(&bytes[0], &Collation { ctype: "en_US.UTF-8".into(), ..bytes[0].clone() }));
        for other in [of('c', "C.UTF-8", ""), of('c', "en_US.UTF-8", "2.36"), of('i', "en", "153.120")] {
            assert!(!alike(&bytes[0], &other), "{other:?}");
        }
        let encoded = |encoding: &str| Collation { encoding: encoding.into(), ..of('c', "C", "") };
        assert!(alike(&encoded("UTF8"), &encoded("LATIN1")));
        assert!(alike(&encoded("EUC_JP"), &encoded("EUC_JP")));
        assert!(!alike(&encoded("UTF8"), &encoded("EUC_JP")));
        assert!(encoded("LATIN1").is_bytewise() && !encoded("EUC_JP").is_bytewise());
    }

    #[test]
    fn servers_of_different_age_call_the_rules_of_icu_alike() {
        let new = of('i', "sv", "153.120");
        let old =
            Collation { collate: "sv".into(), ctype: "sv".into(), locale: String::new(), ..new.clone() };
        assert!(alike(&old, &new));
        // The database's own: what libc calls its locale is another matter there.
        assert!(alike(&new, &Collation { collate: "C".into(), ctype: "C".into(), ..new.clone() }));
    }

    #[test]
    fn texts_that_are_equal_and_not_the_same_have_no_order_of_their_own() {
        let loose = Collation { deterministic: false, ..of('i', "und-u-ks-level2", "153.120") };
        assert!(!alike(&loose, &loose));
    }

    #[test]
    fn an_encoding_is_one_however_it_is_spelled() {
        assert_eq!(plain("de_DE.ISO-8859-15@euro"), "de_DE.iso885915@euro");
        assert_eq!(plain("en_US"), "en_US");
        assert_eq!(plain("C.UTF-8"), plain("C.utf8"));
    }
}
