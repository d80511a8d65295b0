//! What a client reads besides what it writes: pages of the shop, and what a visitor has just changed.
//!
//! Each read is a transaction of its own and says in a comment for which visitor it is; so does each transaction that
//! writes. Reads have connections of their own: what a visitor is promised to find again does not depend on which one.
//! Which server answers is not known here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use tokio_postgres::types::Type;

use super::Client;
use super::measure::Found;
use super::memory::{Draft, Memory, Row};
use super::oracle::state_sql;
use super::session::{LoadError, Session};
use crate::demo::shop::{FRONT_PAGE, Size};

/// Of so many transactions, one is followed by a read.
const EVERY: u32 = 4;
/// Connections that a client reads with, in turn.
const SESSIONS: usize = 2;
/// So many that one in a hundred of them is not chance.
const VISITORS: u32 = 1_000;
/// The last writes that may be read back: of half a second or so, in which the other side learns of them.
const WRITTEN_MAX: usize = 32;

/// For whom something is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Visitor(u32);

impl Visitor {
    pub(super) fn draw(rng: &mut StdRng) -> Visitor {
        Visitor(rng.random_range(1..=VISITORS))
    }

    /// The statement, and for whom it is: as routers understand it, and servers do not care.
    pub(super) fn says(self, sql: &str) -> String {
        format!("{sql} /*segue_tenant='visitor-{}'*/", self.0)
    }
}

/// A row as an acknowledged transaction of a visitor left it.
#[derive(Debug)]
struct Written {
    visitor: Visitor,
    row: Row,
    state: Option<String>,
}

impl Written {
    /// Whether the visitor finds it. Nobody but this client writes the row.
    fn compared_with(&self, found: Option<&str>) -> Found {
        if found == self.state.as_deref() {
            return Found::Written;
        }
        let shown = |state: Option<&str>| state.unwrap_or("no row").to_owned();
        let (place, key) = &self.row;
        Found::Stale(format!(
            "{} {key}: visitor {} left {}, and was shown {}",
            format!("{place:?}").to_lowercase(),
            self.visitor.0,
            shown(self.state.as_deref()),
            shown(found)
        ))
    }
}

/// A client's connections for reads, and what it may read back.
#[derive(Debug, Default)]
pub(super) struct Browser {
    sessions: [Option<Reader>; SESSIONS],
    turn: usize,
    written: VecDeque<Written>,
}

#[derive(Debug)]
struct Reader {
    url: String,
    session: Session,
}

impl Browser {
    /// A transaction was acknowledged. Whoever changed one of its rows before need not find that again.
    pub(super) fn has_written(&mut self, visitor: Visitor, draft: &Draft) {
        self.written.retain(|written| draft.facts.iter().all(|(row, _)| *row != written.row));
        if let Some((row, state)) = draft.facts.last() {
            self.written.push_back(Written { visitor, row: row.clone(), state: state.clone() });
        }
        if self.written.len() > WRITTEN_MAX {
            self.written.pop_front();
        }
    }

    /// One of the last writes, by a random number; none of which nobody can know what is there.
    fn take(&mut self, random: usize, memory: &Memory) -> Option<Written> {
        self.written.retain(|written| !memory.open_rows.contains(&written.row));
        let at = random.checked_rem(self.written.len())?;
        self.written.remove(at)
    }

    /// The next connection in turn, to this server.
    async fn session(&mut self, url: &str) -> Result<&Session, LoadError> {
        self.turn = (self.turn + 1) % SESSIONS;
        let slot = &mut self.sessions[self.turn];
        let known = slot.take().filter(|reader| reader.url == url && !reader.session.is_closed());
        let reader = match known {
            Some(reader) => reader,
            None => Reader { url: url.to_owned(), session: Session::open(url).await? },
        };
        Ok(&slot.insert(reader).session)
    }
}

/// A page of the shop: what it asks for, and with which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Front,
    Product(i32),
    Order(i64),
    Customer(i64),
}

impl Page {
    fn draw(rng: &mut StdRng, size: Size) -> Page {
        let mut one_of = |count: u64| rng.random_range(1..=count);
        let products = i32::try_from(one_of(size.products())).unwrap_or(1);
        let [orders, customers] =
            [size.orders(), size.customers()].map(|count| i64::try_from(one_of(count)).unwrap_or(1));
        match rng.random_range(0..4) {
            0 => Page::Front,
            1 => Page::Product(products),
            2 => Page::Order(orders),
            _ => Page::Customer(customers),
        }
    }

    fn sql(self) -> &'static str {
        match self {
            Page::Front => {
                "SELECT id, title, price::text FROM shop.products WHERE id BETWEEN $1 AND $2 ORDER BY id"
            }
            Page::Product(_) => {
                "SELECT p.title, p.price::text, p.labels, c.name FROM shop.products AS p \
                 JOIN shop.categories AS c ON c.id = p.category_id WHERE p.id = $1"
            }
            Page::Order(_) => {
                "SELECT line, product_id, quantity, price::text FROM shop.order_items WHERE order_id = $1 ORDER BY line"
            }
            Page::Customer(_) => {
                "SELECT c.name, a.street, a.city FROM shop.customers AS c \
                 JOIN shop.addresses AS a ON a.customer_id = c.id WHERE c.id = $1 ORDER BY a.id"
            }
        }
    }

    /// Every page has something on it, always.
    async fn open(self, session: &Session, visitor: Visitor) -> Result<(), LoadError> {
        let sql = visitor.says(self.sql());
        let rows = match &self {
            Page::Front => {
                session
                    .read(&sql, &[(&FRONT_PAGE.start(), Type::INT4), (&FRONT_PAGE.end(), Type::INT4)])
                    .await
            }
            Page::Product(id) => session.read(&sql, &[(id, Type::INT4)]).await,
            Page::Order(id) | Page::Customer(id) => session.read(&sql, &[(id, Type::INT8)]).await,
        }?;
        if rows.is_empty() { Err(LoadError::Missing(self.sql())) } else { Ok(()) }
    }
}

impl Client {
    /// Now and then: reads, and counts what came of it.
    pub(super) async fn browse(&mut self) {
        if !self.rng.random_ratio(1, EVERY) {
            return;
        }
        match self.read_once().await {
            Ok((took, found)) => {
                self.shared.window.browsed(took, &found);
                self.tally.browsed(took, found);
            }
            Err(error) => self.count(&error.to_string()),
        }
    }

    async fn read_once(&mut self) -> Result<(Duration, Found), LoadError> {
        let written = match self.rng.random() {
            true => self.browser.take(self.rng.random_range(0..usize::MAX), &self.memory),
            false => None,
        };
        let url = self.urls.borrow()[self.at].clone();
        let session = self.browser.session(&url).await?;
        let begun = Instant::now();
        let Some(written) = written else {
            let visitor = Visitor::draw(&mut self.rng);
            Page::draw(&mut self.rng, self.size).open(session, visitor).await?;
            return Ok((begun.elapsed(), Found::Page));
        };
        let (place, key) = &written.row;
        let keys = [key.as_str()];
        let sql = written.visitor.says(state_sql(*place));
        let rows = session.read(&sql, &[(&&keys[..], Type::TEXT_ARRAY)]).await?;
        let took = begun.elapsed();
        let found: Option<String> = rows.first().map(|row| row.try_get(1)).transpose()?;
        Ok((took, written.compared_with(found.as_deref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::load::memory::Place;

    fn changed(key: &str, state: Option<&str>) -> Draft {
        Draft::default().with(Place::Orders, key, state.map(str::to_owned))
    }

    #[test]
    fn what_a_visitor_left_is_what_must_be_shown() {
        let row = (Place::Orders, "7".to_owned());
        let left = |state: Option<&str>| Written {
            visitor: Visitor(3),
            row: row.clone(),
            state: state.map(str::to_owned),
        };
        assert_eq!(left(Some("paid")).compared_with(Some("paid")), Found::Written);
        assert_eq!(left(None).compared_with(None), Found::Written);
        let stale = left(Some("paid")).compared_with(Some("placed"));
        assert_eq!(stale, Found::Stale("orders 7: visitor 3 left paid, and was shown placed".into()));
        assert!(matches!(left(Some("paid")).compared_with(None), Found::Stale(_)));
        assert!(matches!(left(None).compared_with(Some("paid")), Found::Stale(_)));
    }

    #[test]
    fn what_was_written_again_or_cannot_be_known_is_not_looked_for() {
        let (mut memory, mut browser) = (Memory::new(1, 1), Browser::default());
        let mut write = |memory: &mut Memory, draft: Draft| {
            browser.has_written(Visitor(1), &draft);
            memory.acknowledge(draft);
        };
        write(&mut memory, changed("1", Some("placed")));
        write(&mut memory, changed("1", Some("paid")));
        write(&mut memory, changed("2", Some("placed")));
        memory.leave_open(changed("2", Some("paid")));
        write(&mut memory, changed("3", None));
        let taken = std::iter::from_fn(|| browser.take(0, &memory));
        let taken: Vec<_> = taken.map(|written| (written.row.1, written.state)).collect();
        assert_eq!(taken, [("1".to_owned(), Some("paid".to_owned())), ("3".to_owned(), None)]);
    }

    #[test]
    fn only_the_last_writes_are_looked_for() {
        let (memory, mut browser) = (Memory::new(1, 1), Browser::default());
        for n in 0..100 {
            browser.has_written(Visitor(1), &changed(&n.to_string(), None));
        }
        assert_eq!(browser.written.len(), WRITTEN_MAX);
        assert_eq!(browser.take(WRITTEN_MAX - 1, &memory).map(|written| written.row.1), Some("99".into()));
    }
}
