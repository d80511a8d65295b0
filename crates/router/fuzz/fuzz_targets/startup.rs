//! The first packets of a connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| segue_router::hostile::startup(bytes));
