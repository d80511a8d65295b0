//! Reads that are compared: which ones, and their answers as they pass.
//!
//! Only a read that is a transaction of its own is taken, whoever serves it. Nothing waits for it: what is too much is left.

use super::Session;
use super::read::Group;
use crate::classify::Class;
use crate::frames::{self, Fields, HEADER_BYTES};
use crate::serve::PoolMode;
use crate::shadow::{Rows, Sample};
use bytes::Bytes;
use rand::Rng;
use std::sync::Arc;
use std::time::Instant;

/// A read whose answer is being kept.
pub(super) struct Sampling {
    class: Arc<Class>,
    text: Box<[u8]>,
    parse: Option<Bytes>,
    bind: Option<Bytes>,
    rows: Rows,
    since: Instant,
}

impl Session {
    /// A transaction begins: whether it is among those that are compared.
    pub(super) fn begin_sample(&mut self) {
        self.sampling = None;
        let wanted = self.shared.feeds.reads.borrow().clone();
        let chance = u32::from(wanted.mirror_percent);
        if chance == 0 || wanted.contained || rand::rng().random_range(0..100) >= chance {
            return;
        }
        if self.may_read_elsewhere() {
            self.sampling = self.sample().map(Box::new);
        }
    }

    fn sample(&self) -> Option<Sampling> {
        let Group::Reads(group) = self.group(&self.input) else { return None };
        let class = group.class.clone().filter(|_| group.is_lone())?;
        let rows = Rows::new(self.config.shadow.sample_bytes_max);
        let mut sampling =
            Sampling { class, text: Box::default(), parse: None, bind: None, rows, since: Instant::now() };
        let mut rest = &self.input[..];
        while let Ok(Some(head)) = frames::head(rest) {
            let frame = rest.get(..head.bytes)?;
            let mut fields = Fields::of(frame);
            match head.tag {
                b'Q' => sampling.text = fields.string().ok()?.into(),
                b'P' => {
                    fields.string().ok()?;
                    sampling.parse = Some(Bytes::copy_from_slice(fields.rest()));
                }
                b'B' => {
                    fields.string().ok()?;
                    let name = fields.string().ok()?;
                    let of_group = sampling.parse.take();
                    let known = || self.statements.get(name).map(|known| Bytes::copy_from_slice(&known.body));
                    sampling.parse = of_group.or_else(known);
                    sampling.bind = Some(Bytes::copy_from_slice(fields.rest()));
                }
                // A part of its rows would be fetched.
                b'E' if frame.ends_with(&[0, 0, 0, 0]) => {}
                b'E' => return None,
                _ => {}
            }
            rest = &rest[head.bytes..];
        }
        if let Some(parse) = &sampling.parse {
            sampling.text = parse.split(|byte| *byte == 0).next()?.into();
        }
        (!sampling.text.is_empty()).then_some(sampling)
    }

    /// A whole frame of the answer passes.
    pub(super) fn note_answer(sampling: &mut Option<Box<Sampling>>, frame: &[u8]) {
        let Some(sample) = sampling else { return };
        let body = &frame[HEADER_BYTES.min(frame.len())..];
        match frame.first() {
            Some(b'T') => sample.rows.describe(body),
            Some(b'D') if !sample.rows.push(body) => *sampling = None,
            Some(b'E') => *sampling = None,
            _ => {}
        }
    }

    /// The transaction has ended: what was kept of it is compared.
    pub(super) fn end_sample(&mut self) {
        let Some(sampling) = self.sampling.take() else { return };
        let Some(link) = &self.link else { return };
        let Sampling { class, text, parse, bind, rows, since } = *sampling;
        let startup = match self.config.pool {
            PoolMode::Session => self.startup.settings.as_slice().into(),
            PoolMode::Transaction => Arc::default(),
        };
        let answered_at = Instant::now();
        self.shared.shadow.offer(Sample {
            config: Arc::clone(&self.config),
            user: self.startup.user.as_str().into(),
            database: self.startup.database.as_str().into(),
            login: self.login.clone(),
            settings: Arc::clone(&self.settings),
            startup,
            text,
            parse,
            bind,
            rows,
            served_by: link.server.side,
            took: answered_at.duration_since(since),
            answered_at,
            fingerprint: class.fingerprint,
            shape: class.shape.clone(),
            order: class.order.clone(),
            limited: class.limited,
        });
    }
}
