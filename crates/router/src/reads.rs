//! Which reads the target may serve while the source owns the writes, and what it shows by now.
//!
//! Given by whoever embeds the router, as the routes are: a share, rules for tenants, and the moment up to which the follower
//! shows everything. Pure; how a read is recognised is in [`classify`](crate::classify), who asks for one in
//! [`session`](crate::session).

use crate::classify::Catalog;
use segue_model::switch::Side;
use segue_model::switch::ownership::Epoch;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Tenants of which it is remembered when they last wrote.
const TENANTS_MAX: usize = 100_000;
/// Lots are drawn from so many.
pub(crate) const LOTS: u32 = 10_000;

/// What is served by the target although the source owns the writes, and what is compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reads {
    /// How much of the reads the target serves, in percent: so many of the sessions, or of the tenants where they say
    /// who they are.
    pub share_percent: u8,
    /// Tenants that are served by this side, whatever the share.
    pub tenants: BTreeMap<String, Side>,
    /// How many of the reads are repeated on the other side and compared, in percent.
    pub mirror_percent: u8,
    /// Nothing is asked of the follower.
    pub contained: bool,
}

impl Reads {
    /// Whether the target serves any.
    pub(crate) fn is_any(&self) -> bool {
        !self.contained && (self.share_percent > 0 || self.tenants.values().any(|side| *side == Side::Target))
    }

    /// Whether the target serves the reads of this tenant, or of who drew this lot.
    pub(crate) fn chooses_target(&self, tenant: Option<&str>, lot: u32) -> bool {
        if let Some(side) = tenant.and_then(|tenant| self.tenants.get(tenant)) {
            return *side == Side::Target;
        }
        let lot = tenant.map_or(lot, lot_of);
        lot < u32::from(self.share_percent) * (LOTS / 100)
    }
}

/// A tenant's lot: the same in every router, so that a tenant's reads never go back and forth between them (FNV-1a).
fn lot_of(tenant: &str) -> u32 {
    let hash = tenant
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    u32::try_from((hash ^ (hash >> 32)) % u64::from(LOTS)).unwrap_or(0)
}

fn hash_of(tenant: &str) -> u64 {
    tenant
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the follower shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fresh {
    /// While the owner was the one of this epoch.
    pub epoch: Epoch,
    /// Everything whose commit was acknowledged before this moment.
    pub as_of: Instant,
}

/// What a router that serves reads is told. Without it, every read is the owner's.
#[derive(Debug, Clone)]
pub struct Feeds {
    /// What is served where.
    pub reads: watch::Receiver<Arc<Reads>>,
    /// What the follower shows.
    pub fresh: watch::Receiver<Option<Fresh>>,
    /// What the owner's catalog says of names; without it nothing is proved to be a read.
    pub catalog: watch::Receiver<Option<Arc<Catalog>>>,
}

impl Feeds {
    /// Nothing is served by anybody but the owner, for good.
    pub fn none() -> Feeds {
        Feeds {
            reads: watch::channel(Arc::default()).1,
            fresh: watch::channel(None).1,
            catalog: watch::channel(None).1,
        }
    }
}

/// Bounds of reads on the follower.
#[derive(Debug, Clone)]
pub struct ReadLimits {
    /// A read that has not begun to be answered by then is repeated on the owner.
    pub answer_max: Duration,
    /// How long a read waits for the follower to show what its session has read of the owner, before it goes to the owner
    /// again. Who has written is not made to wait.
    pub wait_max: Duration,
    /// A follower that shows no more than what was so long ago is not asked, whatever a session has seen.
    pub stale_max: Duration,
}

impl Default for ReadLimits {
    fn default() -> ReadLimits {
        ReadLimits {
            answer_max: Duration::from_millis(200),
            wait_max: Duration::from_millis(50),
            stale_max: Duration::from_secs(2),
        }
    }
}

/// A longer name is remembered by what it comes to.
const TENANT_BYTES_MAX: usize = 128;

fn short(tenant: &str) -> Cow<'_, str> {
    match tenant.len() {
        0..=TENANT_BYTES_MAX => Cow::Borrowed(tenant),
        _ => Cow::Owned(format!("{:x}", hash_of(tenant))),
    }
}

/// A transaction that names more tenants may be for anybody.
const NAMED_MAX: usize = 1_000;

/// Whom a transaction is for, as far as it says so.
#[derive(Debug, Default)]
pub(crate) struct Named {
    tenants: BTreeSet<Box<str>>,
    is_anybodys: bool,
}

impl Named {
    pub(crate) fn insert(&mut self, tenant: &str) {
        let tenant = &*short(tenant);
        if self.is_anybodys || self.tenants.contains(tenant) {
            return;
        }
        if self.tenants.len() < NAMED_MAX {
            self.tenants.insert(tenant.into());
        } else {
            self.tenants.clear();
            self.is_anybodys = true;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.tenants.clear();
        self.is_anybodys = false;
    }
}

/// When each tenant's last transaction on an owner ended.
#[derive(Debug, Default)]
pub(crate) struct Tenants(Mutex<HashMap<Box<str>, Instant>>);

impl Tenants {
    /// A transaction of this tenant has ended now. Where too many are known, all are forgotten but this one, and `since`
    /// tells until when nothing is known.
    pub(crate) fn saw(&self, tenant: &str, now: Instant) {
        let tenant = &*short(tenant);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = seen.get_mut(tenant) {
            *known = now.max(*known);
            return;
        }
        if seen.len() >= TENANTS_MAX {
            let floor = seen.values().max().copied().unwrap_or(now);
            seen.clear();
            // Whoever is not known from here on may have written up to now.
            seen.insert(Box::from(""), floor);
        }
        seen.insert(tenant.into(), now);
    }

    /// A transaction of all of these has ended now.
    pub(crate) fn saw_all(&self, named: &Named, now: Instant) {
        for tenant in &named.tenants {
            self.saw(tenant, now);
        }
        if named.is_anybodys {
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let floor = seen.values().copied().fold(now, Instant::max);
            seen.clear();
            seen.insert(Box::from(""), floor);
        }
    }

    /// What the follower must show before it serves this tenant.
    pub(crate) fn seen(&self, tenant: &str) -> Option<Instant> {
        let tenant = &*short(tenant);
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(tenant).or_else(|| seen.get("")).copied()
    }
}

/// The tenant that a comment of a statement names: `/*segue_tenant='acme'*/`.
pub(crate) fn tenant_in(text: &[u8]) -> Option<String> {
    comment(text, b"segue_tenant='")
}

/// What a comment of a statement gives for a key, as sqlcommenter writes them; the key comes with `='`.
pub(crate) fn comment(text: &[u8], key: &[u8]) -> Option<String> {
    let at = |text: &[u8], what: &[u8]| text.windows(what.len()).position(|window| window == what);
    // Most have none, and this looks at many bytes at once.
    if !text.contains(&b'*') {
        return None;
    }
    let mut rest = text;
    while let Some(begin) = at(rest, b"/*") {
        rest = &rest[begin + 2..];
        let end = at(rest, b"*/")?;
        if let Some(from) = at(&rest[..end], key) {
            let value = &rest[from + key.len()..end];
            let value = &value[..value.iter().position(|byte| *byte == b'\'')?];
            return decoded(value);
        }
        rest = &rest[end + 2..];
    }
    None
}

/// Without URL encoding.
fn decoded(value: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [*bytes.next()?, *bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_share_and_grows_without_sending_anybody_back() {
        let reads = |share_percent| Reads { share_percent, ..Reads::default() };
        let served = |share: u8| {
            let tenants = (0..10_000).map(|i| format!("tenant {i}"));
            tenants
                .filter(|t| reads(share).chooses_target(Some(t), 0))
                .collect::<std::collections::BTreeSet<_>>()
        };
        let (one, ten, all) = (served(1), served(10), served(100));
        assert!(served(0).is_empty() && all.len() == 10_000);
        assert!(
            (60..140).contains(&one.len()) && (850..1150).contains(&ten.len()),
            "{} {}",
            one.len(),
            ten.len()
        );
        assert!(one.is_subset(&ten));
        assert!(reads(1).chooses_target(None, 99) && !reads(1).chooses_target(None, 100));
    }

    #[test]
    fn a_rule_goes_before_the_share() {
        let tenants = [("a".to_owned(), Side::Target), ("b".to_owned(), Side::Source)].into();
        let mut reads = Reads { tenants, ..Reads::default() };
        assert!(reads.is_any() && reads.chooses_target(Some("a"), 0) && !reads.chooses_target(Some("c"), 0));
        reads.share_percent = 100;
        assert!(!reads.chooses_target(Some("b"), 0) && reads.chooses_target(Some("c"), 0));
        reads.contained = true;
        assert!(!reads.is_any());
    }

    #[test]
    fn what_a_tenant_has_seen_only_grows_and_is_never_too_little() {
        let (tenants, now) = (Tenants::default(), Instant::now());
        tenants.saw("a", now);
        tenants.saw("a", now - Duration::from_secs(1));
        assert_eq!((tenants.seen("a"), tenants.seen("b")), (Some(now), None));
        for i in 0..TENANTS_MAX {
            tenants.saw(&i.to_string(), now);
        }
        assert!(tenants.0.lock().unwrap().len() <= TENANTS_MAX + 1);
        assert_eq!(tenants.seen("a"), Some(now), "forgotten, and taken for one that has just written");
    }

    #[test]
    fn a_transaction_of_more_tenants_than_are_counted_is_everybodys() {
        let (tenants, now) = (Tenants::default(), Instant::now());
        let mut named = Named::default();
        let long = "x".repeat(1 << 20);
        for i in 0..NAMED_MAX - 1 {
            named.insert(&i.to_string());
            named.insert(&long);
        }
        assert!(named.tenants.iter().map(|tenant| tenant.len()).sum::<usize>() < 1 << 16);
        tenants.saw_all(&named, now);
        assert_eq!([tenants.seen("7"), tenants.seen(&long), tenants.seen("b")], [Some(now), Some(now), None]);
        named.insert("one more");
        let later = now + Duration::from_secs(1);
        tenants.saw_all(&named, later);
        assert_eq!([tenants.seen("7"), tenants.seen("b")], [Some(later); 2]);
        assert!(named.tenants.is_empty() && tenants.0.lock().unwrap().len() == 1);
        named.clear();
        named.insert("a");
        tenants.saw_all(&named, later + Duration::from_secs(1));
        assert_eq!(tenants.seen("b"), Some(later));
    }

    #[test]
    fn a_comment_names_the_tenant() {
        for (text, tenant) in [
            ("SELECT 1", None),
            ("SELECT 1 /*segue_tenant='acme'*/", Some("acme")),
            ("/* a */ SELECT 1 /*route='x',segue_tenant='a%20b%27',z='1'*/", Some("a b'")),
            ("SELECT 'segue_tenant=''x'''", None),
            ("SELECT 1 /*segue_tenant='acme", None),
            ("SELECT 1 /*segue_tenant='%zz'*/", None),
        ] {
            assert_eq!(tenant_in(text.as_bytes()).as_deref(), tenant, "{text}");
        }
    }
}
