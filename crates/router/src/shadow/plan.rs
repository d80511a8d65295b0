//! The text of a plan, without anything of the data: constants and numbers are taken out of it.

/// More is not kept of one plan.
const PLAN_BYTES_MAX: usize = 4 * 1024;

/// A plan's text with `?` in the place of every string and every number that is not a part of a name.
pub(super) fn without_constants(plan: &str) -> String {
    let mut told = String::with_capacity(plan.len());
    let mut rest = plan.chars().peekable();
    // What stands before decides whether a digit is a part of a name, and what a quotation mark begins.
    let mut before = ' ';
    while let Some(character) = rest.next() {
        match character {
            '\'' => {
                skip_string(&mut rest, matches!(before, 'E' | 'e'));
                told.push('?');
            }
            '"' => {
                told.push('"');
                // A quotation mark that is doubled ends one name and begins another: nothing else follows from it.
                for inside in rest.by_ref() {
                    told.push(inside);
                    if inside == '"' {
                        break;
                    }
                }
            }
            digit if digit.is_ascii_digit() && !is_of_name(before) => {
                while rest.next_if(|next| next.is_ascii_alphanumeric() || *next == '.').is_some() {}
                told.push('?');
            }
            other => told.push(other),
        }
        before = character;
        if told.len() > PLAN_BYTES_MAX {
            break;
        }
    }
    super::compare::bounded(&told, PLAN_BYTES_MAX)
}

fn is_of_name(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '$')
}

fn skip_string(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, escapes: bool) {
    while let Some(character) = rest.next() {
        match character {
            '\\' if escapes => drop(rest.next()),
            // A doubled one is a part of the string.
            '\'' if rest.next_if_eq(&'\'').is_none() => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_and_constants_go() {
        for (plan, told) in [
            ("Seq Scan on t1 x_2", "Seq Scan on t1 x_2"),
            (
                "  Filter: ((name = 'it''s me'::text) AND (n > 12.5))",
                "  Filter: ((name = ?::text) AND (n > ?))",
            ),
            (r"Filter: (a = E'x\'y\\'::text) b", "Filter: (a = E?::text) b"),
            ("Filter: (\"a'1\" = '-1'::integer)", "Filter: (\"a'1\" = ?::integer)"),
            ("Filter: (a = 'one\ntwo'::text)\n  -> X", "Filter: (a = ?::text)\n  -> X"),
            ("Filter: (a = 'no end", "Filter: (a = ?"),
            ("Workers Planned: 2", "Workers Planned: ?"),
            ("(n = 10000001e5)", "(n = ?)"),
        ] {
            assert_eq!(without_constants(plan), told);
        }
    }

    #[test]
    fn a_long_plan_is_cut() {
        assert_eq!(without_constants(&"é".repeat(PLAN_BYTES_MAX)).len(), PLAN_BYTES_MAX);
    }
}
