//! Keys and values on the command line: any bytes, in one of four forms, and back as text that
//! people can read. What is printed for people can be given back with `--escaped`.
//! It must never change a byte.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;

/// How keys and values are written on the command line.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[group(multiple = false)]
pub struct Form {
    /// Keys and values given are hexadecimal
    #[arg(long)]
    pub hex: bool,
    /// Keys and values given are base64
    #[arg(long)]
    pub base64: bool,
    /// Keys and values given have escapes: \xNN \n \r \t \0 \\ \"
    #[arg(long)]
    pub escaped: bool,
}

impl Form {
    /// The bytes that `given` stands for; `what` names it in the message. Without a form it is
    /// taken as it is, be it text or not.
    pub fn parse(self, what: &str, given: &OsStr) -> Result<Bytes, String> {
        self.parse_bytes(given.as_bytes()).map_err(|why| format!("{what}: {why}"))
    }

    /// As [`Form::parse`], for what came from a file.
    pub fn parse_bytes(self, given: &[u8]) -> Result<Bytes, String> {
        if self.hex {
            parse_hex(given)
        } else if self.base64 {
            let text: Vec<u8> = given.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
            STANDARD.decode(text).map(Bytes::from).map_err(|error| format!("not base64: {error}"))
        } else if self.escaped {
            unescape(given)
        } else {
            Ok(Bytes::copy_from_slice(given))
        }
    }
}

fn parse_hex(given: &[u8]) -> Result<Bytes, String> {
    let digits: Vec<u8> = given.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if !digits.len().is_multiple_of(2) {
        return Err(format!("not hexadecimal: {} digits, an even number is needed", digits.len()));
    }
    digits
        .chunks_exact(2)
        .map(|pair| match (hex_digit(pair[0]), hex_digit(pair[1])) {
            (Some(high), Some(low)) => Ok(high << 4 | low),
            _ => Err(format!("not hexadecimal: \"{}\"; use 0-9 and a-f", pair.escape_ascii())),
        })
        .collect::<Result<Vec<u8>, _>>()
        .map(Bytes::from)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// The bytes that a text with escapes stands for.
pub fn unescape(given: &[u8]) -> Result<Bytes, String> {
    let mut out = Vec::with_capacity(given.len());
    let mut rest = given;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (&name, tail) = rest.split_first().ok_or("ends in a single \\; write \\\\ for a backslash")?;
        rest = tail;
        out.push(match name {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'0' => 0,
            b'\\' | b'"' => name,
            b'x' => {
                let digits = rest.get(..2).and_then(|pair| Some((hex_digit(pair[0])?, hex_digit(pair[1])?)));
                let (high, low) = digits.ok_or("\\x needs two hexadecimal digits, as in \\x0a")?;
                rest = &rest[2..];
                high << 4 | low
            }
            other => {
                return Err(format!(
                    "unknown escape \\{}; known are \\xNN \\n \\r \\t \\0 \\\\ \\\"",
                    other.escape_ascii()
                ));
            }
        });
    }
    Ok(out.into())
}

/// Bytes for people, on one line: printable text as it is, everything else with the escapes that
/// [`unescape`] takes.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\0' => out.push_str("\\0"),
                '\\' => out.push_str("\\\\"),
                printable if !hidden(printable) => out.push(printable),
                other => other.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| push_hex(&mut out, byte)),
            }
        }
        chunk.invalid().iter().for_each(|byte| push_hex(&mut out, *byte));
    }
    out
}

/// Characters a terminal does not show as themselves: controls, and the marks that reorder or
/// hide the text after them.
fn hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn push_hex(out: &mut String, byte: u8) {
    out.push_str("\\x");
    out.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
    out.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
}

/// Bytes as base64.
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: Form = Form { hex: false, base64: false, escaped: false };
    const HEX: Form = Form { hex: true, ..PLAIN };
    const BASE64: Form = Form { base64: true, ..PLAIN };
    const ESCAPED: Form = Form { escaped: true, ..PLAIN };

    /// `expect` is the bytes, or a part of the message.
    fn check(form: Form, input: &[u8], expect: Result<&[u8], &str>) {
        match (form.parse_bytes(input), expect) {
            (Ok(bytes), Ok(expected)) => assert_eq!(bytes.as_ref(), expected, "{}", input.escape_ascii()),
            (Err(message), Err(part)) => assert!(message.contains(part), "{message:?} lacks {part:?}"),
            (got, expected) => panic!("{}: got {got:?}, expected {expected:?}", input.escape_ascii()),
        }
    }

    #[test]
    fn every_form_gives_its_bytes_or_says_why_not() {
        check(PLAIN, b"a\\n\xff", Ok(b"a\\n\xff"));
        check(PLAIN, b"", Ok(b""));
        check(HEX, b"00fFa0", Ok(b"\x00\xff\xa0"));
        check(HEX, b"00 ff\n", Ok(b"\x00\xff"));
        check(HEX, b"abc", Err("even number"));
        check(HEX, b"zz", Err("\"zz\""));
        check(HEX, b"+1", Err("\"+1\""));
        check(BASE64, b"AP8=", Ok(b"\x00\xff"));
        check(BASE64, b"AP8=\n", Ok(b"\x00\xff"));
        check(BASE64, b"AP8", Err("not base64"));
        check(ESCAPED, b"a\\x00\\n\\r\\t\\0\\\\\\\"\xc3\xa4", Ok(b"a\x00\n\r\t\0\\\"\xc3\xa4"));
        check(ESCAPED, b"a\\", Err("single \\"));
        check(ESCAPED, b"a\\x0", Err("two hexadecimal digits"));
        check(ESCAPED, b"a\\q", Err("unknown escape \\q"));
    }

    #[test]
    fn what_people_read_is_one_line_of_what_a_terminal_shows() {
        for (bytes, expect) in [
            (&b"task/1"[..], "task/1"),
            (b"\x00\xff", "\\0\\xff"),
            ("ä €".as_bytes(), "ä €"),
            (b"a\tb\nc\\", "a\\tb\\nc\\\\"),
            ("\u{1b}[31m".as_bytes(), "\\x1b[31m"),
            ("\u{202e}x".as_bytes(), "\\xe2\\x80\\xaex"),
        ] {
            assert_eq!(escape(bytes), expect);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_given_back(bytes: Vec<u8>) {
            let printed = escape(&bytes);
            prop_assert!(!printed.contains(char::is_control));
            prop_assert_eq!(&unescape(printed.as_bytes()).unwrap().to_vec(), &bytes);
            prop_assert_eq!(&BASE64.parse_bytes(to_base64(&bytes).as_bytes()).unwrap().to_vec(), &bytes);
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            for form in [PLAIN, HEX, BASE64, ESCAPED] {
                let _ = form.parse_bytes(&bytes);
            }
        }
    }
}
