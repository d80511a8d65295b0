//! What the shop's clients do: each function is the body of one transaction, and says what it leaves behind.

use rand::Rng;
use rand::rngs::StdRng;

use super::memory::{Draft, Entry, Memory, Place};
use super::session::{LoadError, Session};
use crate::demo::shop::Size;

/// A kind of transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Transfer,
    Note,
    PlaceOrder,
    AdvanceOrder,
    EditDocument,
    RewriteDocument,
    RenumberDocument,
    AddEvent,
    MoveEvent,
    TouchSession,
    EndSession,
    RenameTag,
    SwapEmails,
    AddAudit,
    ChangeAudit,
    RemoveAudit,
    AddSize,
    ChangeSize,
    RemoveSize,
    ChangeOfMind,
}

impl Kind {
    /// Draws one by the mix.
    pub(super) fn draw(rng: &mut StdRng, memory: &Memory) -> Kind {
        let mut at = rng.random_range(0..MIX.iter().map(|(_, share)| share).sum());
        if memory.is_full() {
            return Kind::Transfer;
        }
        for (kind, share) in MIX {
            match at.checked_sub(share) {
                Some(rest) => at = rest,
                None => return kind,
            }
        }
        Kind::Transfer
    }
}

/// How often each occurs, in a hundred. What a table without a key costs on any target keeps its share low.
const MIX: [(Kind, u32); 20] = [
    (Kind::Transfer, 25),
    (Kind::Note, 10),
    (Kind::PlaceOrder, 16),
    (Kind::AdvanceOrder, 10),
    (Kind::EditDocument, 6),
    (Kind::RewriteDocument, 1),
    (Kind::RenumberDocument, 1),
    (Kind::AddEvent, 6),
    (Kind::MoveEvent, 4),
    (Kind::TouchSession, 6),
    (Kind::EndSession, 2),
    (Kind::RenameTag, 2),
    (Kind::SwapEmails, 1),
    (Kind::AddAudit, 2),
    (Kind::ChangeAudit, 1),
    (Kind::RemoveAudit, 1),
    (Kind::AddSize, 2),
    (Kind::ChangeSize, 1),
    (Kind::RemoveSize, 1),
    (Kind::ChangeOfMind, 2),
];

const STATUSES: [&str; 5] = ["placed", "paid", "packed", "shipped", "returned"];
const EVENT_KINDS: [&str; 4] = ["seen", "clicked", "searched", "left"];
const TAG_STEMS: [&str; 4] = ["Ähre-", "zebra ", "Zebra_", "école."];

/// One client at work.
pub(super) struct Work<'a> {
    pub(super) session: &'a mut Session,
    pub(super) memory: &'a mut Memory,
    pub(super) rng: &'a mut StdRng,
    pub(super) size: Size,
}

/// How a body wants to end.
pub(super) enum End {
    Commit(Draft),
    Rollback,
}

type Done = Result<Draft, LoadError>;

impl Work<'_> {
    /// Does what is between BEGIN and the end. A kind that finds no row to write does a transfer instead.
    pub(super) async fn body(&mut self, kind: Kind) -> Result<End, LoadError> {
        let draft = match kind {
            Kind::Transfer => Some(self.transfer().await?),
            Kind::Note => Some(self.note().await?),
            Kind::PlaceOrder => Some(self.place_order().await?),
            Kind::AdvanceOrder => self.advance_order().await?,
            Kind::EditDocument => self.edit_document().await?,
            Kind::RewriteDocument => self.rewrite_document().await?,
            Kind::RenumberDocument => self.renumber_document().await?,
            Kind::AddEvent => Some(self.add_event().await?),
            Kind::MoveEvent => self.move_event().await?,
            Kind::TouchSession => self.touch_session().await?,
            Kind::EndSession => self.end_session().await?,
            Kind::RenameTag => self.rename_tag().await?,
            Kind::SwapEmails => self.swap_emails().await?,
            Kind::AddAudit => Some(self.add_audit().await?),
            Kind::ChangeAudit => self.change_audit().await?,
            Kind::RemoveAudit => self.remove_audit().await?,
            Kind::AddSize => Some(self.add_size().await?),
            Kind::ChangeSize => self.change_size().await?,
            Kind::RemoveSize => self.remove_size().await?,
            Kind::ChangeOfMind => {
                self.transfer().await?;
                self.place_order().await?;
                return Ok(End::Rollback);
            }
        };
        match draft {
            Some(draft) => Ok(End::Commit(draft)),
            None => Ok(End::Commit(self.transfer().await?)),
        }
    }

    fn random(&mut self) -> u64 {
        self.rng.random()
    }

    fn random_id(&mut self, count: u64) -> i32 {
        i32::try_from(self.rng.random_range(1..=count)).unwrap_or(1)
    }

    /// A seeded row of `place` or one of this client's own, with its state, if it is there. `seeded` gives key and
    /// state of a seeded row from its number.
    fn pick(
        &mut self,
        place: Place,
        rows: u64,
        seeded: impl Fn(u64) -> (String, String),
    ) -> Option<(String, String)> {
        let own = if self.rng.random() { self.memory.own(self.rng.random(), place) } else { None };
        let (key, seeded_state) = match own {
            Some(key) => (key.to_owned(), None),
            None => {
                let (key, state) = seeded(self.memory.seeded(self.rng.random(), rows));
                (key, Some(state))
            }
        };
        let state = self.memory.state(place, &key, seeded_state)?;
        Some((key, state))
    }

    async fn transfer(&mut self) -> Done {
        let (from, to) = (self.random_id(self.size.accounts()), self.random_id(self.size.accounts()));
        let cents: i64 = self.rng.random_range(1..=20_000);
        let mut moves = [(from, -cents), (to, cents)];
        // Always in the same order: clients wait for each other here, and must not deadlock.
        moves.sort_unstable();
        for (account, cents) in moves {
            let sql = "UPDATE shop.accounts SET balance = balance + $2::bigint / 100.0 WHERE id = $1";
            self.session.write(sql, &[&account, &cents]).await?;
        }
        self.enter(from, to, cents).await
    }

    async fn note(&mut self) -> Done {
        let account = self.random_id(self.size.accounts());
        let cents = self.rng.random_range(0..1_000_000);
        self.enter(account, account, cents).await
    }

    async fn enter(&mut self, from: i32, to: i32, cents: i64) -> Done {
        let number = self.memory.fresh();
        let sql = "INSERT INTO shop.ledger (writer, number, from_account, to_account, amount) \
                   VALUES ($1, $2, $3, $4, $5::bigint / 100.0)";
        self.session.write(sql, &[&self.memory.writer, &number, &from, &to, &cents]).await?;
        Ok(Draft { entry: Some(Entry { number, from, to, cents }), facts: Vec::new() })
    }

    async fn place_order(&mut self) -> Done {
        let customer = i64::from(self.random_id(self.size.customers()));
        let (items, products) = (self.rng.random_range(1..=5_i32), self.random_id(self.size.products()) - 5);
        let cents: i64 = self.rng.random_range(100..1_000_000);
        let sql = "INSERT INTO shop.orders (customer_id, total) VALUES ($1, $2::bigint / 100.0) RETURNING id";
        let id: i64 = self.session.write_returning(sql, &[&customer, &cents]).await?.try_get(0)?;
        let sql = "INSERT INTO shop.order_items (order_id, line, product_id, quantity, price) \
                   SELECT $1, line, greatest($3::int, 0) + line, line, line * 1.25 FROM generate_series(1, $2::int) AS line";
        self.session.write(sql, &[&id, &items, &products]).await?;
        if self.rng.random_ratio(1, 8) {
            self.session.control("SAVEPOINT voucher").await?;
            let sql = "UPDATE shop.orders SET total = 0 WHERE id = $1";
            self.session.write(sql, &[&id]).await?;
            self.session.control("ROLLBACK TO SAVEPOINT voucher").await?;
        }
        let state = format!("{} {cents} {items}", STATUSES[0]);
        Ok(Draft::default().with(Place::Orders, id.to_string(), state))
    }

    async fn advance_order(&mut self) -> Result<Option<Draft>, LoadError> {
        let seeded = |n: u64| {
            let state = format!("{} {} 2", STATUSES[(n % 5) as usize], n % 90_000);
            (n.to_string(), state)
        };
        let Some((key, state)) = self.pick(Place::Orders, self.size.orders(), seeded) else {
            return Ok(None);
        };
        let (before, rest) = state.split_once(' ').unwrap_or_default();
        let at = STATUSES.iter().position(|status| *status == before).unwrap_or_default();
        let status = STATUSES[(at + 1) % STATUSES.len()];
        let sql = "UPDATE shop.orders SET status = $2::text::shop.order_status, delivery = interval '2 days' \
                   WHERE id = $1::text::bigint AND status = $3::text::shop.order_status";
        self.session.write(sql, &[&key, &status, &before]).await?;
        Ok(Some(Draft::default().with(Place::Orders, key, format!("{status} {rest}"))))
    }

    fn pick_document(&mut self) -> Option<(String, i32)> {
        let (key, state) =
            self.pick(Place::Documents, self.size.documents(), |n| (n.to_string(), "0".to_owned()))?;
        Some((key, state.parse().ok()?))
    }

    /// Leaves the large text alone.
    async fn edit_document(&mut self) -> Result<Option<Draft>, LoadError> {
        let Some((key, revision)) = self.pick_document() else { return Ok(None) };
        let sql = "UPDATE shop.documents SET revision = $2 + 1, title = 'Terms, revised ' || $2 \
                   WHERE id = $1::text::bigint AND revision = $2";
        self.session.write(sql, &[&key, &revision]).await?;
        Ok(Some(Draft::default().with(Place::Documents, key, (revision + 1).to_string())))
    }

    async fn rewrite_document(&mut self) -> Result<Option<Draft>, LoadError> {
        let Some((key, revision)) = self.pick_document() else { return Ok(None) };
        let sql = "UPDATE shop.documents SET revision = $2 + 1, body = reverse(body), checksum = md5(reverse(body)) \
                   WHERE id = $1::text::bigint AND revision = $2";
        self.session.write(sql, &[&key, &revision]).await?;
        Ok(Some(Draft::default().with(Place::Documents, key, (revision + 1).to_string())))
    }

    /// Changes the key and leaves the large text alone.
    async fn renumber_document(&mut self) -> Result<Option<Draft>, LoadError> {
        let Some((key, revision)) = self.pick_document() else { return Ok(None) };
        let new_id = self.memory.fresh_key();
        let sql = "UPDATE shop.documents SET id = $2 WHERE id = $1::text::bigint AND revision = $3";
        self.session.write(sql, &[&key, &new_id, &revision]).await?;
        let draft = Draft::default().with(Place::Documents, key, None);
        Ok(Some(draft.with(Place::Documents, new_id.to_string(), revision.to_string())))
    }

    async fn add_event(&mut self) -> Done {
        let (day, at) = (self.rng.random_range(0..150_i32), self.rng.random_range(0..EVENT_KINDS.len()));
        let kind = EVENT_KINDS[at];
        let sql = "INSERT INTO shop.events (day, kind, details) \
                   VALUES (date '2025-01-01' + $1::int, $2, '{\"page\": 1}') RETURNING id";
        let id: i64 = self.session.write_returning(sql, &[&day, &kind]).await?.try_get(0)?;
        Ok(Draft::default().with(Place::Events, id.to_string(), format!("{day} {kind}")))
    }

    /// To another day, and so mostly to another partition.
    async fn move_event(&mut self) -> Result<Option<Draft>, LoadError> {
        let seeded = |n: u64| (n.to_string(), format!("{} {}", n % 150, EVENT_KINDS[(n % 4) as usize]));
        let Some((key, state)) = self.pick(Place::Events, self.size.events(), seeded) else {
            return Ok(None);
        };
        let (before, kind) = state.split_once(' ').unwrap_or_default();
        let Ok(before) = before.parse::<i32>() else { return Ok(None) };
        let day = (before + self.rng.random_range(20..130)) % 150;
        let sql = "UPDATE shop.events SET day = date '2025-01-01' + $3::int \
                   WHERE id = $1::text::bigint AND day = date '2025-01-01' + $2::int";
        self.session.write(sql, &[&key, &before, &day]).await?;
        Ok(Some(Draft::default().with(Place::Events, key, format!("{day} {kind}"))))
    }

    fn pick_session(&mut self) -> Option<(String, i32)> {
        let (key, state) =
            self.pick(Place::Sessions, self.size.sessions(), |n| (n.to_string(), "0".to_owned()))?;
        Some((key, state.parse().ok()?))
    }

    async fn touch_session(&mut self) -> Result<Option<Draft>, LoadError> {
        let (key, hits) = match self.pick_session() {
            Some(found) if self.rng.random_ratio(2, 3) => found,
            _ => (self.memory.fresh_key().to_string(), 0),
        };
        let sql = "INSERT INTO shop.sessions (id, hits, agent) \
                   VALUES (md5('session ' || $1::text)::uuid, $2 + 1, '2001:db8::1') \
                   ON CONFLICT (id) DO UPDATE SET hits = sessions.hits + 1, seen_at = clock_timestamp()";
        self.session.write(sql, &[&key, &hits]).await?;
        Ok(Some(Draft::default().with(Place::Sessions, key, (hits + 1).to_string())))
    }

    async fn end_session(&mut self) -> Result<Option<Draft>, LoadError> {
        let Some((key, hits)) = self.pick_session() else { return Ok(None) };
        let sql = "DELETE FROM shop.sessions WHERE id = md5('session ' || $1::text)::uuid AND hits = $2";
        self.session.write(sql, &[&key, &hits]).await?;
        Ok(Some(Draft::default().with(Place::Sessions, key, None)))
    }

    async fn rename_tag(&mut self) -> Result<Option<Draft>, LoadError> {
        let seeded = |n: u64| (format!("{}{n}", TAG_STEMS[(n % 4) as usize]), "0".to_owned());
        let Some((key, uses)) = self.pick(Place::Tags, self.size.tags(), seeded) else { return Ok(None) };
        let uses: i32 = uses.parse().unwrap_or_default();
        let stem = TAG_STEMS[(self.random() % 4) as usize];
        let name = format!("{stem}{}", self.memory.fresh_key());
        let sql = "UPDATE shop.tags SET tag = $2, uses = uses + 1 WHERE tag = $1 AND uses = $3";
        self.session.write(sql, &[&key, &name, &uses]).await?;
        let draft = Draft::default().with(Place::Tags, key, None);
        Ok(Some(draft.with(Place::Tags, name, (uses + 1).to_string())))
    }

    /// Two customers swap what must be unique.
    async fn swap_emails(&mut self) -> Result<Option<Draft>, LoadError> {
        let seeded = |n: u64| (n.to_string(), format!("customer{n}@example.com"));
        let mut draw = || self.pick(Place::Customers, self.size.customers(), seeded);
        let (Some((one, one_email)), Some((other, other_email))) = (draw(), draw()) else { return Ok(None) };
        if one == other {
            return Ok(None);
        }
        let between = format!("{}@example.net", self.memory.fresh_key());
        let sql = "UPDATE shop.customers SET email = $2::text WHERE id = $1::text::bigint";
        self.session.write(sql, &[&one, &between]).await?;
        self.session.write(sql, &[&other, &one_email]).await?;
        self.session.write(sql, &[&one, &other_email]).await?;
        let draft = Draft::default().with(Place::Customers, one, other_email);
        Ok(Some(draft.with(Place::Customers, other, one_email)))
    }

    /// Without a key, also twice the same row.
    async fn add_audit(&mut self) -> Done {
        let (number, copies) = (self.memory.fresh_key(), self.rng.random_range(1..=2_i32));
        let sql = "INSERT INTO shop.audit (number, what, at) \
                   SELECT $1, 'new', timestamptz '2025-06-01 00:00Z' FROM generate_series(1, $2::int)";
        self.session.write(sql, &[&number, &copies]).await?;
        Ok(Draft::default().with(Place::Audit, number.to_string(), format!("{copies} new")))
    }

    fn pick_audit(&mut self) -> Option<(String, String)> {
        let seeded = |n: u64| (n.to_string(), format!("1 order {n} was looked at"));
        self.pick(Place::Audit, self.size.audit(), seeded)
    }

    async fn change_audit(&mut self) -> Result<Option<Draft>, LoadError> {
        let Some((key, state)) = self.pick_audit() else { return Ok(None) };
        let copies = state.split(' ').next().unwrap_or_default();
        let what = format!("changed {}", self.memory.fresh());
        let sql = "UPDATE shop.audit SET what = $2 WHERE number = $1::text::bigint";
        self.session.write(sql, &[&key, &what]).await?;
        let state = format!("{copies} {what}");
        Ok(Some(Draft::default().with(Place::Audit, key, state)))
    }

    async fn remove_audit(&mut self) -> Result<Option<Draft>, LoadError> {
        let Some((key, _)) = self.pick_audit() else { return Ok(None) };
        self.session.write("DELETE FROM shop.audit WHERE number = $1::text::bigint", &[&key]).await?;
        Ok(Some(Draft::default().with(Place::Audit, key, None)))
    }

    async fn add_size(&mut self) -> Done {
        let (length, width) = (self.rng.random_range(0..500_i32), self.rng.random_range(0..300_i32));
        let sql = "INSERT INTO shop.\"Größen & Maße\" (\"Länge\", width) VALUES ($1, $2) RETURNING \"Nr\"";
        let id: i64 = self.session.write_returning(sql, &[&length, &width]).await?.try_get(0)?;
        let state = format!("{length} {width} {}", length * width);
        Ok(Draft::default().with(Place::Sizes, id.to_string(), state))
    }

    fn pick_size(&mut self) -> Option<(String, i32)> {
        let seeded = |n: u64| (n.to_string(), format!("{} {} {}", n % 500, n % 300, (n % 500) * (n % 300)));
        let (key, state) = self.pick(Place::Sizes, self.size.sizes(), seeded)?;
        Some((key, state.split(' ').nth(1)?.parse().ok()?))
    }

    async fn change_size(&mut self) -> Result<Option<Draft>, LoadError> {
        let Some((key, width)) = self.pick_size() else { return Ok(None) };
        let length = self.rng.random_range(0..500_i32);
        let sql = "UPDATE shop.\"Größen & Maße\" SET \"Länge\" = $2 WHERE \"Nr\" = $1::text::bigint";
        self.session.write(sql, &[&key, &length]).await?;
        let state = format!("{length} {width} {}", length * width);
        Ok(Some(Draft::default().with(Place::Sizes, key, state)))
    }

    async fn remove_size(&mut self) -> Result<Option<Draft>, LoadError> {
        let Some((key, _)) = self.pick_size() else { return Ok(None) };
        let sql = "DELETE FROM shop.\"Größen & Maße\" WHERE \"Nr\" = $1::text::bigint";
        self.session.write(sql, &[&key]).await?;
        Ok(Some(Draft::default().with(Place::Sizes, key, None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_of_a_hundred() {
        assert_eq!(MIX.iter().map(|(_, share)| share).sum::<u32>(), 100);
    }
}
