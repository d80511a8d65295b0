//! Both ends of a login.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| segue_router::hostile::scram(bytes));
