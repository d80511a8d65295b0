//! Source: what following costs the source, and a transaction that is larger than anybody's memory.
//!
//! * [`extra`]: processor time and bytes beside PostgreSQL's own subscription
//! * [`large`]: the large transaction

mod extra;
mod large;

use super::Options;

pub(super) async fn measure(options: &Options) -> String {
    let mut text = extra::measure(options).await;
    text.push_str(&large::measure(options).await);
    text
}
