//! Frames of a peer that is logged in, and their order.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| segue_router::hostile::frames(bytes));
