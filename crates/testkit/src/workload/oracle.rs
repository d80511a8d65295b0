//! Asks a server whether everything that was acknowledged is there, and nothing else.

use super::memory::{Change, Memory};
use super::schema::{Kind, OPENING_BALANCE, SHAPES, Shape};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

/// What the clients of a workload remember, as one judge of any server that claims to have the data.
#[derive(Debug, Clone)]
pub struct Oracle {
    pub(super) memories: Vec<Memory>,
}

/// One acknowledged write that a server does not have, or something it has that nobody wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The table, or the name of a rule that holds across tables.
    pub place: String,
    /// The row's number (its column `n`), or whatever identifies what is wrong.
    pub what: String,
    /// The state that was acknowledged; `None`: the row must not be there.
    pub expected: Option<String>,
    /// The state found; `None`: there is no such row.
    pub found: Option<String>,
}

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_nothing = |state: &Option<String>| state.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(
            formatter,
            "{} {}: expected {}, found {}",
            self.place,
            self.what,
            or_nothing(&self.expected),
            or_nothing(&self.found)
        )
    }
}

/// Enough to see a pattern; a lost table would be a long list.
const LOST_MAX: usize = 200;

impl Oracle {
    /// Checks a server, in one snapshot: the one that was written to, or one that the data were moved to.
    ///
    /// A transaction whose COMMIT got no answer may have happened or not, but wholly: its ledger entry decides.
    ///
    /// # Panics
    /// If the server cannot be asked.
    pub async fn check(&self, client: &Client) -> Result<(), Vec<Lost>> {
        client
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .expect("begin a snapshot");
        let lost = self.compare(client).await.unwrap_or_else(|error| panic!("ask the server: {error:?}"));
        client.batch_execute("COMMIT").await.expect("end the snapshot");
        if lost.is_empty() { Ok(()) } else { Err(lost) }
    }

    async fn compare(&self, client: &Client) -> Result<Vec<Lost>, Error> {
        let mut lost = Vec::new();
        let mut memories = self.memories.clone();
        for memory in &mut memories {
            settle(memory, &ledger_of(client, memory.client).await?, &mut lost);
        }
        for (index, shape) in SHAPES.iter().enumerate() {
            compare_shape(client, index, shape, &memories, &mut lost).await?;
        }
        compare_rules(client, &memories, &mut lost).await?;
        lost.truncate(LOST_MAX);
        Ok(lost)
    }
}

async fn ledger_of(client: &Client, writer: u32) -> Result<HashSet<u64>, Error> {
    let rows = pairs(client, &format!("SELECT seq, NULL FROM shop.ledger WHERE client = {writer}")).await?;
    Ok(rows.into_iter().map(|(seq, _)| seq).collect())
}

/// Holds the ledger against the acknowledged transactions, and carries out those that turn out to have happened.
fn settle(memory: &mut Memory, ledger: &HashSet<u64>, lost: &mut Vec<Lost>) {
    let mut entry = |seq: u64, expected: &str, found: &str| {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        lost.push(Lost {
            place: "shop.ledger".to_owned(),
            what: format!("client {} seq {seq}", memory.client),
            expected: some(expected),
            found: some(found),
        });
    };
    let mut explained: HashSet<u64> = memory.acked.iter().copied().collect();
    for seq in memory.acked.iter().filter(|seq| !ledger.contains(seq)) {
        entry(*seq, "an entry", "");
    }
    explained.extend(memory.unresolved.iter().map(|open| open.seq));
    for seq in ledger.difference(&explained) {
        entry(*seq, "", "an entry of a transaction that was rolled back");
    }
    for open in std::mem::take(&mut memory.unresolved) {
        if ledger.contains(&open.seq) {
            open.changes.into_iter().for_each(|change: Change| memory.apply(change));
        }
    }
}

async fn compare_shape(
    client: &Client,
    index: usize,
    shape: &Shape,
    memories: &[Memory],
    lost: &mut Vec<Lost>,
) -> Result<(), Error> {
    let mut expected: HashMap<u64, &str> = HashMap::new();
    let (lo, hi) = memories[0].seeded.ranges[index];
    let cleared = memories.iter().any(|memory| memory.cleared.contains(&index));
    let mut untouched = if cleared { 0 } else { (hi + 1).saturating_sub(lo) };
    for memory in memories {
        for ((_, n), state) in memory.rows.iter().filter(|((shape, _), _)| *shape == index) {
            untouched -= u64::from(!cleared && memory.seeded.contains(index, *n));
            if let Some(state) = state {
                expected.insert(*n, state);
            }
        }
    }
    let (table, state) = (shape.table, shape.state);
    let (written, seeded) = if shape.kind == Kind::Keyless {
        (
            format!("SELECT n, {state} FROM {table} GROUP BY n HAVING max(version) > 0"),
            format!("SELECT count(*), NULL FROM {table} WHERE version = 0"),
        )
    } else {
        (
            format!("SELECT n, {state} FROM {table} WHERE version > 0"),
            format!("SELECT count(*), NULL FROM {table} WHERE version = 0"),
        )
    };
    let mut difference = |what: String, expected: Option<String>, found: Option<String>| {
        lost.push(Lost { place: table.to_owned(), what, expected, found });
    };
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    for (n, found) in pairs(client, &written).await? {
        let wanted = expected.remove(&n);
        if seen.insert(n, 1).is_some() {
            difference(format!("row {n}"), None, Some("the row once more".to_owned()));
        } else if wanted != found.as_deref() {
            difference(format!("row {n}"), wanted.map(str::to_owned), found);
        }
    }
    for (n, state) in expected {
        difference(format!("row {n}"), Some(state.to_owned()), None);
    }
    let found = pairs(client, &seeded).await?.first().map_or(0, |(count, _)| *count);
    if found != untouched {
        difference("seeded rows".to_owned(), Some(untouched.to_string()), Some(found.to_string()));
    }
    Ok(())
}

/// What holds across rows: money, and values that follow from others.
async fn compare_rules(client: &Client, memories: &[Memory], lost: &mut Vec<Lost>) -> Result<(), Error> {
    let money = memories[0].seeded.accounts * OPENING_BALANCE;
    let balances = format!(
        "SELECT a.id, a.balance || ' in place of ' || {OPENING_BALANCE} + coalesce(sum(moved.amount), 0)
         FROM shop.account a LEFT JOIN (
             SELECT from_account AS account, -amount AS amount FROM shop.ledger
             UNION ALL SELECT to_account, amount FROM shop.ledger) moved ON moved.account = a.id
         GROUP BY a.id, a.balance HAVING a.balance <> {OPENING_BALANCE} + coalesce(sum(moved.amount), 0)"
    );
    let rules: [(&str, &str); 5] = [
        ("balances follow from the ledger", &balances),
        (
            "documents have the body of their version",
            "SELECT n, left(body, 40) FROM shop.document
             WHERE body IS DISTINCT FROM repeat(md5(n || ':' || body_version), (100 + n % 200)::int)",
        ),
        (
            "relocated rows keep their body",
            "SELECT n, left(body, 40) FROM shop.relocating WHERE body IS DISTINCT FROM repeat(md5(n::text), 90)",
        ),
        (
            "generated columns follow from theirs",
            "SELECT n, amount::text FROM shop.order_item WHERE amount IS DISTINCT FROM quantity * price",
        ),
        (
            "orders have all their items",
            "SELECT o.n, count(i.*)::text FROM shop.orders o LEFT JOIN shop.order_item i ON i.order_id = o.id
             GROUP BY o.id, o.n HAVING count(i.*) <> 2",
        ),
    ];
    for (rule, violations) in rules {
        for (n, found) in pairs(client, violations).await? {
            lost.push(Lost { place: rule.to_owned(), what: format!("row {n}"), expected: None, found });
        }
    }
    let total = format!("SELECT 1, sum(balance)::text FROM shop.account HAVING sum(balance) <> {money}");
    for (_, found) in pairs(client, &total).await? {
        let expected = Some(money.to_string());
        lost.push(Lost { place: "money is conserved".to_owned(), what: "sum".to_owned(), expected, found });
    }
    Ok(())
}

/// Rows of a number and a text. Text protocol: the expressions' types differ.
async fn pairs(client: &Client, sql: &str) -> Result<Vec<(u64, Option<String>)>, Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((row.get(0)?.parse().unwrap_or(u64::MAX), row.get(1).map(str::to_owned)))
            }
            _ => None,
        })
        .collect())
}
