//! An answer's rows and columns, as they came over the wire: bounded, in one piece of memory.
//!
//! It does not know what a value means, nor whose answer it is.

use crate::frames::{Fields, Malformed};

/// One column, as RowDescription tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column<'a> {
    pub(super) name: &'a [u8],
    pub(super) type_oid: u32,
    pub(super) is_binary: bool,
}

/// A row's values; `None`: null.
pub(super) type Values<'a> = Vec<Option<&'a [u8]>>;

/// An answer. It is complete, or it says that it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rows {
    description: Option<Box<[u8]>>,
    /// The bodies of all DataRow, one behind the other.
    data: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
    bytes_max: usize,
    is_cut: bool,
}

impl Rows {
    /// An answer of so many bytes at most.
    pub(crate) fn new(bytes_max: usize) -> Rows {
        Rows { description: None, data: Vec::new(), ends: Vec::new(), bytes_max, is_cut: false }
    }

    /// Takes the body of a RowDescription.
    pub(crate) fn describe(&mut self, body: &[u8]) {
        self.description = Some(body.into());
    }

    /// Takes the body of a DataRow; `false`: it is too much, and the answer is not complete.
    pub(crate) fn push(&mut self, body: &[u8]) -> bool {
        if self.is_cut || self.bytes() + body.len() + size_of::<usize>() > self.bytes_max {
            self.cut();
            return false;
        }
        self.data.extend_from_slice(body);
        self.ends.push(self.data.len());
        true
    }

    /// There is more than is kept.
    pub(crate) fn cut(&mut self) {
        self.is_cut = true;
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let description = self.description.as_ref().map_or(0, |body| body.len());
        description + self.data.len() + self.ends.len() * size_of::<usize>()
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether both hold the same bytes in the same order.
    pub(super) fn has_same_bytes(&self, other: &Rows) -> bool {
        self.data == other.data && self.ends == other.ends
    }

    /// The bodies, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.data[start..end])
    }

    /// The columns; `None` where the answer does not tell.
    pub(super) fn columns(&self) -> Result<Option<Vec<Column<'_>>>, Malformed> {
        let Some(body) = &self.description else { return Ok(None) };
        let mut fields = Fields::of_body(b'T', body);
        let count = fields.short_int()?;
        (0..count).map(|_| column(&mut fields)).collect::<Result<Vec<_>, _>>().map(Some)
    }
}

fn column<'a>(fields: &mut Fields<'a>) -> Result<Column<'a>, Malformed> {
    let name = fields.string()?;
    // Table and attribute number differ from side to side without any meaning.
    fields.bytes(6)?;
    let type_oid = fields.int()?;
    // Length and modifier follow from the type.
    fields.bytes(6)?;
    Ok(Column { name, type_oid, is_binary: fields.short_int()? != 0 })
}

/// The values of a DataRow's body.
pub(super) fn values(body: &[u8]) -> Result<Values<'_>, Malformed> {
    let mut fields = Fields::of_body(b'D', body);
    let count = fields.short_int()?;
    (0..count).map(|_| fields.value()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::shadow) const TEXT_OID: u32 = 25;

    /// A row's body.
    pub(in crate::shadow) fn row(values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            match value {
                None => body.extend(u32::MAX.to_be_bytes()),
                Some(value) => {
                    body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                    body.extend(*value);
                }
            }
        }
        body
    }

    /// A description's body.
    pub(in crate::shadow) fn description(columns: &[(&str, u32, bool)]) -> Vec<u8> {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for (name, type_oid, is_binary) in columns {
            body.extend([name.as_bytes(), &[0; 7]].concat());
            body.extend(type_oid.to_be_bytes());
            body.extend([0; 6]);
            body.extend(u16::from(*is_binary).to_be_bytes());
        }
        body
    }

    /// An answer of text columns.
    pub(in crate::shadow) fn answer(columns: &[&str], rows: &[&[&str]]) -> Rows {
        let columns: Vec<_> = columns.iter().map(|name| (*name, TEXT_OID, false)).collect();
        let mut answer = Rows::new(1 << 20);
        answer.describe(&description(&columns));
        for values in rows {
            let values: Vec<_> = values.iter().map(|value| Some(value.as_bytes())).collect();
            assert!(answer.push(&row(&values)));
        }
        answer
    }

    #[test]
    fn what_was_pushed_is_read_again() {
        let answer = answer(&["a", "b"], &[&["1", ""], &["2", "x"]]);
        let read: Vec<_> = answer.iter().map(|body| values(body).unwrap()).collect();
        assert_eq!(read, [[Some(&b"1"[..]), Some(b"")], [Some(b"2"), Some(b"x")]]);
        let columns = answer.columns().unwrap().unwrap();
        assert_eq!(
            (columns[1].name, columns[1].type_oid, columns[1].is_binary),
            (&b"b"[..], TEXT_OID, false)
        );
        assert_eq!(values(&row(&[None])), Ok(vec![None]));
    }

    #[test]
    fn too_much_is_cut_and_stays_cut() {
        let mut rows = Rows::new(40);
        assert!(rows.push(&[0; 20]) && !rows.push(&[0; 20]) && !rows.push(&[0; 1]));
        assert!(rows.is_cut() && rows.bytes() <= 40);
    }

    #[test]
    fn values_that_run_past_their_row_are_errors() {
        let body = row(&[Some(b"abc")]);
        assert_eq!(values(&body[..body.len() - 1]), Err(Malformed::Short('D')));
        assert_eq!(values(b""), Err(Malformed::Short('D')));
    }
}
