//! Which target a migration goes to, as the source remembers it.
//!
//! Slot, publication and guard are named after the migration alone. Driven with the address of another target, it would
//! take them for those of a start of its own that was cut short, and drop them: the first target would never get the rest.
//! So both sides get the same mark before anything is made for a stream, and nothing on the source is given to a target
//! that does not have it. The mark goes wherever the target's rows go: to a standby that is promoted, through an upgrade,
//! into a copy.

use super::{Authority, Direction, stream_name, under_token};
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::sqltext::quote_literal;
use tokio_postgres::Client;

/// A database, as far as it can be told from others that have no mark either.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// `system_identifier` of its server.
    system_id: String,
    /// Its number there.
    database: u32,
    /// How it is reached, without user and password.
    address: String,
}

/// A pair, as each of its sides remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    mark: String,
    target: Place,
    /// For people.
    since: String,
}

/// A target, and how it is reached: host, port and database.
pub type Reached<'a> = (&'a Client, &'a str);

/// Refuses a target that is not the one which the source's side of `migration` was made for. Changes nothing.
///
/// To be asked before the token is raised on the source: whoever drives the migration to that one is not to be disturbed.
pub async fn only_target(source: &Client, target: Reached<'_>, migration: &str) -> Outcome<()> {
    both(source, target, migration).await.map(drop)
}

/// Refuses a source that is not the one which the target's side of `migration` comes from, and a target as [`only_target`] does: what
/// is removed on a right target for the sake of a wrong source is gone, and what is on the right source stays. Changes nothing.
pub async fn only_each_other(source: &Client, target: Reached<'_>, migration: &str) -> Outcome<()> {
    let (of_source, of_target) = both(source, target, migration).await?;
    let is_one =
        of_source.is_some() || of_target.is_none() || is_from_here(source, target.0, migration).await?;
    if is_one { Ok(()) } else { Err(another_source(migration, target.1)) }
}

/// Marks both sides as a pair, under the token, which was raised on both, and refuses what [`only_target`] does: nobody else
/// marks the source meanwhile. To be called before anything is made for a stream; can be repeated.
pub async fn pair(source: &Client, target: Reached<'_>, authority: Authority<'_>) -> Outcome<()> {
    let during = |fault: Fault| fault.during("writing down which target the migration goes to");
    let (of_source, of_target) = both(source, target, authority.0).await?;
    let (place, _) = place_of(target, 0).await.map_err(during)?;
    if let (Some(known), Some(_)) = (&of_source, &of_target)
        && known.target == place
    {
        return Ok(());
    }
    let mark = of_source.or(of_target).map(|pair| quote_literal(&pair.mark));
    let mark = mark.unwrap_or_else(|| "gen_random_uuid()::text".to_owned());
    // The target first: a source that is marked, and the target not, would have another one than its own.
    let marked = under_token(target.0, authority, &row(authority.0, &mark, &place)).await.map_err(during)?;
    let mark = marked.ok_or_else(|| Fault::bug("SEGUE-CATALOG", "the target got no mark"))?;
    killpoint::pass("birth.paired");
    let row = row(authority.0, &quote_literal(&mark), &place);
    under_token(source, authority, &row).await.map(drop).map_err(during)
}

/// The statement that writes a pair down; a mark that is there stays, and is returned. `mark` is SQL.
fn row(migration: &str, mark: &str, target: &Place) -> String {
    format!(
        "INSERT INTO segue.pair (migration, mark, target, system_id, database_oid, made_at)
         VALUES ({}, {mark}, {}, {}, {}, clock_timestamp())
         ON CONFLICT (migration) DO UPDATE SET target = excluded.target, system_id = excluded.system_id,
             database_oid = excluded.database_oid
         RETURNING mark",
        quote_literal(migration),
        quote_literal(&target.address),
        quote_literal(&target.system_id),
        target.database
    )
}

/// The pair as the source and as the target remember it, if it is one.
async fn both(
    source: &Client,
    target: Reached<'_>,
    migration: &str,
) -> Outcome<(Option<Pair>, Option<Pair>)> {
    let during = |fault: Fault| fault.during("looking which target the migration goes to");
    let (of_source, of_target) =
        tokio::try_join!(remembered(source, migration), remembered(target.0, migration)).map_err(during)?;
    if let Some(known) = &of_source {
        let is_it = match &of_target {
            Some(its) => its.mark == known.mark,
            None => {
                let (place, has_the_number) =
                    place_of(target, known.target.database).await.map_err(during)?;
                is_in_its_place(&known.target, &place, has_the_number)
            }
        };
        if !is_it {
            return Err(another(migration, known, target.1));
        }
    }
    Ok((of_source, of_target))
}

/// Whether a source without a mark is the one that the target's stream comes from: its server was restored to before it got one,
/// or it knows the slot. A target without a stream comes from anywhere.
async fn is_from_here(source: &Client, target: &Client, migration: &str) -> Outcome<bool> {
    let failed = |e| fault_of(&e);
    let sql = "SELECT system_id FROM segue.stream WHERE migration = $1 AND direction = 'forward'";
    let Some(stream) = target.query_opt(sql, &[&migration]).await.map_err(failed)? else { return Ok(true) };
    let own =
        "SELECT system_identifier::text, to_regclass('segue.slot') IS NOT NULL FROM pg_control_system()";
    let row = source.query_one(own, &[]).await.map_err(failed)?;
    if row.get::<_, String>(0) == stream.get::<_, String>(0) {
        return Ok(true);
    }
    if !row.get::<_, bool>(1) {
        return Ok(false);
    }
    let slot = "SELECT EXISTS (SELECT FROM segue.slot WHERE migration = $1)";
    Ok(source.query_one(slot, &[&migration]).await.map_err(failed)?.get(0))
}

fn another_source(migration: &str, target: &str) -> Fault {
    let name = stream_name(migration, Direction::Forward).unwrap_or_default();
    Fault::operator(
        "SEGUE-OTHER-SOURCE",
        format!(
            "the target {target} gets the rows of migration {migration} from another source than this one, which has nothing of it: \
             what was done here would leave {name} behind there, for which that server keeps its log"
        ),
        format!(
            "correct the source in the spec. Only if the other one is gone for good, on the target: DELETE FROM segue.pair WHERE \
             migration = {}; then ask again",
            quote_literal(migration)
        ),
    )
}

/// Whether a target without a mark is the one that is remembered: it was restored to before it got one, somebody has
/// dropped what Segue keeps there, or the database was made anew under its name. Not if the one of that number is still
/// on its server, under another name.
fn is_in_its_place(known: &Place, given: &Place, has_the_number: bool) -> bool {
    let is_there = known.system_id == given.system_id && known.address == given.address;
    is_there && (known.database == given.database || !has_the_number)
}

async fn remembered(client: &Client, migration: &str) -> Outcome<Option<Pair>> {
    let there = "SELECT to_regclass('segue.pair') IS NOT NULL";
    if !client.query_one(there, &[]).await.map_err(|e| fault_of(&e))?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT mark, system_id, database_oid, target,
                to_char(made_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC' AS since
           FROM segue.pair WHERE migration = $1";
    let row = client.query_opt(sql, &[&migration]).await.map_err(|e| fault_of(&e))?;
    Ok(row.map(|row| Pair {
        mark: row.get("mark"),
        target: Place {
            system_id: row.get("system_id"),
            database: row.get("database_oid"),
            address: row.get("target"),
        },
        since: row.get("since"),
    }))
}

/// What a target is, and whether its server has a database of this `number`.
async fn place_of((client, address): Reached<'_>, number: u32) -> Outcome<(Place, bool)> {
    let sql = "SELECT s.system_identifier::text AS system_id, EXISTS (SELECT FROM pg_database o WHERE o.oid = $1) AS has_it,
                (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) AS database
           FROM pg_control_system() s";
    let row = client.query_one(sql, &[&number]).await.map_err(|e| fault_of(&e))?;
    let place =
        Place { system_id: row.get("system_id"), database: row.get("database"), address: address.to_owned() };
    Ok((place, row.get("has_it")))
}

fn another(migration: &str, known: &Pair, given: &str) -> Fault {
    let Pair { target: Place { address, .. }, since, .. } = known;
    let its = if address == given {
        format!("a database that was reached as {address} then")
    } else {
        address.clone()
    };
    let name = stream_name(migration, Direction::Forward).unwrap_or_default();
    Fault::operator(
        "SEGUE-OTHER-TARGET",
        format!(
            "the target {given} is not the one that migration {migration} goes to since {since}: that is {its}. What is \
             called {name} on the source is for that one, which would never get the rest if it were given to another"
        ),
        format!(
            "correct the target in the spec; or give this migration a name of its own; or name {its} as the target, and \
             `segue cancel` there first. Only if that one is gone for good, on the source: \
             DELETE FROM segue.pair WHERE migration = {}; then ask again",
            quote_literal(migration)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(system_id: &str, database: u32, address: &str) -> Place {
        Place { system_id: system_id.into(), database, address: address.into() }
    }

    #[test]
    fn without_a_mark_only_what_stands_in_its_place_is_the_target() {
        let known = place("7", 5, "db1:5432/shop");
        assert!(is_in_its_place(&known, &known, true), "restored, or without Segue's schema");
        let anew = place("7", 9, "db1:5432/shop");
        assert!(is_in_its_place(&known, &anew, false), "dropped, and made again");
        assert!(!is_in_its_place(&known, &anew, true), "renamed: it is still there");
        for other in
            [place("7", 5, "db2:5432/shop"), place("8", 5, "db1:5432/shop"), place("7", 9, "db1:5432/other")]
        {
            assert!(!is_in_its_place(&known, &other, false), "{other:?}");
        }
    }

    #[test]
    fn another_target_is_told_which_one_it_is_and_how_to_go_on() {
        let known = Pair { mark: "m".into(), target: place("7", 5, "db1:5432/shop"), since: "then".into() };
        let fault = another("orders-move", &known, "db2:5432/shop");
        for part in
            ["db2:5432/shop is not the one", "since then: that is db1:5432/shop", "segue_orders_move_fwd"]
        {
            assert!(fault.what.contains(part), "{part}: {fault}");
        }
        assert!(fault.next_step.contains("WHERE migration = 'orders-move'; then ask again"), "{fault}");
        let same = another("orders-move", &known, "db1:5432/shop");
        assert!(same.what.contains("reached as db1:5432/shop then"), "{same}");
    }
}
