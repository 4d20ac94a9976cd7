//! Any bytes, however they are split, say the same to the scanner of streamed answers.
//!
//! The first byte of the input is the length of the pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omnitrace::sse::{Scanner, Usage};

fn scan<'b>(mut scanner: Scanner, pieces: impl Iterator<Item = &'b [u8]>) -> (u64, [bool; 2], Usage) {
    let counted: u64 = pieces.map(|piece| scanner.feed(piece)).sum();
    assert_eq!(counted, scanner.tokens());
    let said = [scanner.is_done(), scanner.has_error()];
    (counted, said, scanner.usage())
}

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else {
        return;
    };
    let size = usize::from(*size).max(1);
    for make in [Scanner::new, Scanner::document] {
        let whole = scan(make(), std::iter::once(bytes));
        assert_eq!(scan(make(), bytes.chunks(size)), whole);
        assert_eq!(scan(make(), bytes.chunks(1)), whole);
        // A token takes at least its empty line.
        assert!(whole.0 <= bytes.len() as u64 / 2);
    }
});
