//! From the spec as written to the spec as meant: names, bounds, defaults, and what must hold between values.

use std::collections::HashMap;
use std::time::Duration;

use super::bounds::{self, Defaults, defaults};
use super::gates;
use super::problem::{Place, Problems};
use super::quantity::ShownBytes;
use super::raw::{RawApply, RawLimits, RawMapping, RawSide, RawSpec, RawSwitch, RawTable, RawVerify};
use super::read::At;
use super::rollback;
use super::router;
use super::secret::{ConnectionUrl, ConnectionUrlError};
use super::selection::{Mapping, Selection, TableChoice, TableEntry, is_off_limits};
use super::throttle;
use super::{Apply, Copy, Create, Guard, Limits, MigrationName, Profile, Spec, Switch, TargetSchema, Verify};
use crate::name::{NameError, Pattern, QualifiedName};

/// Checks all that can be checked without a server. Where it adds problems, the spec is refused, whatever it returns.
pub(super) fn validate(raw: RawSpec, problems: &mut Problems<'_>) -> Option<Spec> {
    let profile = raw.profile.map_or(Profile::Prod, |profile| profile.value);
    let standard = defaults(profile);
    let name = raw.migration.and_then(|name| migration_name(&name, problems));
    let source = raw.source.and_then(|side| connection(side.value, problems));
    let target_place = raw.target.as_ref().map(|side| side.key_place);
    let target = raw.target.and_then(|side| connection(side.value, problems));
    if let (Some(source), Some(target), Some(place)) = (&source, &target, target_place)
        && source.expose() == target.expose()
    {
        problems.add_with_help(
            place,
            "source and target are the same database",
            "name the one the tables go to",
        );
    }
    let control = raw.control.and_then(|side| connection(side.value, problems)).or_else(|| target.clone());
    let exclude = exclusions(raw.exclude.map(|list| list.value).unwrap_or_default(), problems);
    let tables = raw.tables.map(|list| tables(list, &exclude, problems));
    let copy = raw.copy.map(|section| section.value).unwrap_or_default();
    let region_target_default = u64::try_from(standard.region_target.as_millis()).unwrap_or(u64::MAX);
    let region_target_ms =
        bounds::REGION_TARGET.settle(copy.region_target_ms, region_target_default, problems);
    let copy = Copy {
        workers: usize::try_from(bounds::COPY_WORKERS.settle(copy.workers, standard.copy_workers, problems))
            .ok()?,
        region_target: Duration::from_millis(region_target_ms),
    };
    let apply = raw.apply.map(|section| section.value).unwrap_or_default();
    let limits = raw.limits.map(|section| section.value).unwrap_or_default();
    let (apply, limits) = sizes(apply, limits, &standard, problems);
    let throttle = raw.throttle.map(|section| section.value).unwrap_or_default();
    let throttle = throttle::validate(throttle, &standard.throttle, problems);
    let verify = verify(raw.verify.map(|section| section.value).unwrap_or_default(), &standard, problems);
    let written = raw.switch.map(|section| section.value).unwrap_or_default();
    let switch = switch(written, (profile, raw.router.is_some()), &standard, problems);
    let guard = raw.guard.map(|section| section.value).unwrap_or_default();
    let guard = Guard { ddl: guard.ddl.map_or(standard.guard_ddl, |ddl| ddl.value) };
    let schema = raw.schema.map(|section| section.value).unwrap_or_default();
    let schema = TargetSchema { create: schema.create.map_or(Create::None, |create| create.value) };
    let rollback =
        raw.rollback.map(|section| rollback::validate(section.value, problems)).unwrap_or_default();
    let router = raw.router.and_then(|section| router::validate(section.value, problems));
    let selection =
        Selection { tables: tables?, exclude: exclude.into_iter().map(|pattern| pattern.value).collect() };
    Some(Spec {
        name: name?,
        profile,
        source: source?,
        target: target?,
        control: control?,
        selection,
        copy,
        apply,
        limits,
        throttle,
        verify,
        switch,
        guard,
        schema,
        rollback,
        router,
    })
}

fn migration_name(written: &At<String>, problems: &mut Problems<'_>) -> Option<MigrationName> {
    let name = MigrationName::parse(&written.value);
    if name.is_none() {
        problems.add_with_help(
            written.place,
            format!("`{}` cannot name a migration", written.value),
            "use small letters, digits and `-`, a letter first, at most 40 characters",
        );
    }
    name
}

fn connection(side: RawSide, problems: &mut Problems<'_>) -> Option<ConnectionUrl> {
    let written = side.postgres?;
    match ConnectionUrl::parse(&written.value) {
        Ok(url) => Some(url),
        Err(error) => {
            let help = match error {
                ConnectionUrlError::Empty => {
                    "write postgres://user@host/database, or \"${NAME}\" to take it from there"
                }
                ConnectionUrlError::OtherScheme(_) | ConnectionUrlError::Unrecognised => {
                    "write postgres://user@host/database or \"host=… dbname=…\""
                }
            };
            problems.add_with_help(written.place, error.to_string(), help);
            None
        }
    }
}

fn exclusions(written: Vec<At<String>>, problems: &mut Problems<'_>) -> Vec<At<Pattern>> {
    let read = |text: At<String>| {
        let pattern = pattern(&text, problems)?;
        Some(At { value: pattern, place: text.place, key_place: text.key_place })
    };
    written.into_iter().filter_map(read).collect()
}

fn pattern(text: &At<String>, problems: &mut Problems<'_>) -> Option<Pattern> {
    Pattern::parse(&text.value).map_err(|error| bad_name(text, &error, problems)).ok()
}

fn bad_name(text: &At<String>, error: &NameError, problems: &mut Problems<'_>) {
    let message = format!("`{}` is not the name of a table: {error}", text.value);
    match error {
        NameError::BareWildcard => {
            problems.add_with_help(text.place, message, "write `public.*` for one schema, \"*.*\" for all");
        }
        _ => problems.add(text.place, message),
    }
}

/// An item of `tables` that could be read.
struct Listed {
    place: Place,
    /// Where its target is written; its own place if that follows from the source.
    target_place: Place,
    choice: TableChoice,
}

/// What is claimed by which line, to find what is claimed twice.
#[derive(Default)]
struct Claims {
    sources: HashMap<String, usize>,
    targets: HashMap<QualifiedName, usize>,
}

fn tables(list: At<Vec<RawTable>>, exclude: &[At<Pattern>], problems: &mut Problems<'_>) -> Vec<TableEntry> {
    if list.value.is_empty() {
        problems.add_with_help(
            list.key_place,
            "`tables` names no table",
            "add `- schema.table` or `- schema.*`",
        );
    }
    let mut claims = Claims::default();
    let mut entries = Vec::with_capacity(list.value.len());
    for item in list.value {
        let Some(listed) = table(item, problems) else { continue };
        check_claims(&listed, &mut claims, problems);
        check_reach(&listed, exclude, problems);
        entries.push(TableEntry { line: listed.place.line, choice: listed.choice });
    }
    entries
}

fn table(item: RawTable, problems: &mut Problems<'_>) -> Option<Listed> {
    let (from, to) = match item {
        RawTable::Name(name) => (name, None),
        RawTable::Mapping(mapping) => {
            refuse_later_keys(&mapping, problems);
            (mapping.from?, mapping.to)
        }
    };
    let place = from.place;
    let pattern = pattern(&from, problems)?;
    let Some(source) = pattern.exact() else {
        if let Some(to) = to {
            problems.add_with_help(to.key_place, "a pattern cannot have `to`", "list the tables one by one");
        }
        return Some(Listed { place, target_place: place, choice: TableChoice::Matching(pattern) });
    };
    let target_place = to.as_ref().map_or(place, |to| to.place);
    let target = match to {
        Some(to) => QualifiedName::parse(&to.value).map_err(|error| bad_name(&to, &error, problems)).ok()?,
        None => source.clone(),
    };
    Some(Listed { place, target_place, choice: TableChoice::One(Mapping { source, target }) })
}

fn refuse_later_keys(mapping: &RawMapping, problems: &mut Problems<'_>) {
    let written = [
        (
            "columns",
            mapping.columns.map(|at| at.key_place),
            "every column moves as it is; leave this key out",
        ),
        ("where", mapping.r#where.map(|at| at.key_place), "every row moves; leave this key out"),
        (
            "reverse",
            mapping.reverse.map(|at| at.key_place),
            "the way back mirrors the way forward; leave this key out",
        ),
    ];
    for (key, place, help) in written {
        if let Some(place) = place {
            problems.add_with_help(place, format!("`{key}` is not supported yet"), help);
        }
    }
}

fn check_claims(listed: &Listed, claims: &mut Claims, problems: &mut Problems<'_>) {
    let Listed { place, target_place, choice } = listed;
    let source = choice.to_string();
    if let Some(first) = claims.sources.get(&source) {
        problems.add_with_help(
            *place,
            format!("`{source}` is listed twice"),
            format!("the first is on line {first}"),
        );
        return;
    }
    claims.sources.insert(source, place.line);
    if let TableChoice::One(mapping) = choice {
        match claims.targets.get(&mapping.target) {
            Some(first) => problems.add_with_help(
                *target_place,
                format!("two tables would go to `{}`", mapping.target),
                format!("the other is on line {first}"),
            ),
            None => _ = claims.targets.insert(mapping.target.clone(), place.line),
        }
    }
}

/// Tables that a migration must not touch, and those that are listed and left out at the same time.
fn check_reach(listed: &Listed, exclude: &[At<Pattern>], problems: &mut Problems<'_>) {
    let TableChoice::One(mapping) = &listed.choice else { return };
    for (table, place) in [(&mapping.source, listed.place), (&mapping.target, listed.target_place)] {
        if is_off_limits(table) {
            let message = format!("`{table}` belongs to PostgreSQL or to Segue itself");
            problems.add_with_help(place, message, "list tables of the application only");
        }
    }
    if let Some(pattern) = exclude.iter().find(|pattern| pattern.value.matches(&mapping.source)) {
        problems.add_with_help(
            pattern.place,
            format!("`{}` leaves out `{}`, which `tables` lists by name", pattern.value, mapping.source),
            format!("it is listed on line {}; remove one of the two", listed.place.line),
        );
    }
}

fn sizes(
    apply: RawApply,
    limits: RawLimits,
    standard: &Defaults,
    problems: &mut Problems<'_>,
) -> (Apply, Limits) {
    let blamed = apply.batch_bytes_max.or(limits.memory_bytes_max).map(|at| at.place);
    let apply = Apply {
        batch_bytes_max: bounds::BATCH_BYTES.settle(
            apply.batch_bytes_max,
            standard.batch_bytes_max,
            problems,
        ),
    };
    let limits = Limits {
        retained_wal_bytes_max: bounds::RETAINED_WAL_BYTES.settle(
            limits.retained_wal_bytes_max,
            standard.retained_wal_bytes_max,
            problems,
        ),
        memory_bytes_max: bounds::MEMORY_BYTES.settle(
            limits.memory_bytes_max,
            standard.memory_bytes_max,
            problems,
        ),
    };
    // While one batch is written the next one is gathered.
    if let Some(place) = blamed
        && apply.batch_bytes_max > limits.memory_bytes_max / 2
    {
        let [batch, memory] = [apply.batch_bytes_max, limits.memory_bytes_max].map(ShownBytes);
        problems.add_with_help(
            place,
            format!("two batches of {batch} (`apply.batch_bytes_max`) do not fit into {memory} (`limits.memory_bytes_max`)"),
            "make batches smaller, or allow more memory",
        );
    }
    (apply, limits)
}

fn verify(raw: RawVerify, standard: &Defaults, problems: &mut Problems<'_>) -> Verify {
    Verify {
        live: raw.live.map_or(standard.live, |live| live.value),
        live_keys_per_second_max: bounds::LIVE_KEYS_PER_SECOND.settle(
            raw.live_keys_per_second_max,
            standard.live_keys_per_second_max,
            problems,
        ),
        range_rows: bounds::RANGE_ROWS.settle(raw.range_rows, standard.range_rows, problems),
    }
}

fn switch(
    raw: RawSwitch,
    (profile, has_router): (Profile, bool),
    standard: &Defaults,
    problems: &mut Problems<'_>,
) -> Switch {
    let hold_ms = u64::try_from(standard.max_write_hold.as_millis()).unwrap_or(u64::MAX);
    let max_write_hold_ms = bounds::MAX_WRITE_HOLD.settle(raw.max_write_hold_ms, hold_ms, problems);
    Switch {
        max_write_hold: Duration::from_millis(max_write_hold_ms),
        accept_session_state: raw.accept_session_state.is_some_and(|accept| accept.value),
        gates: gates::validate(
            raw.gates.map(|section| section.value).unwrap_or_default(),
            profile,
            has_router,
            problems,
        ),
    }
}
