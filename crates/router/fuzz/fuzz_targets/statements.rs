//! The text of statements.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| segue_router::hostile::statements(bytes));
