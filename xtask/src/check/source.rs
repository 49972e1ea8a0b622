//! Rust source with its comments and the insides of its strings blanked, and the few tokens that the
//! rules look at. Not a parser: it knows only what could fool a search for words.

/// `text` with comments and the contents of string and character literals turned into spaces. Lines stay.
pub fn strip(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = if rest.starts_with(b"//") {
            at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment(bytes, at)
        } else if let Some((open, hashes)) = raw_string(bytes, at) {
            let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let found = bytes[open..].windows(close.len()).position(|window| window == close);
            found.map_or(bytes.len(), |found| open + found + close.len())
        } else if rest[0] == b'"' {
            quoted(bytes, at, b'"')
        } else if rest[0] == b'\'' && is_char_literal(rest) {
            quoted(bytes, at, b'\'')
        } else {
            at += 1;
            continue;
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    // Only whole characters outside literals are left, and spaces.
    String::from_utf8_lossy(&out).into_owned()
}

fn block_comment(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// Where a raw string's contents begin and how many hashes close it, if one begins at `at`.
fn raw_string(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let inside_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if bytes[at] != b'r' || (inside_word && !matches!(bytes[at - 1], b'b' | b'c')) {
        return None;
    }
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    (bytes.get(at + 1 + hashes) == Some(&b'"')).then_some((at + 2 + hashes, hashes))
}

/// The end of a literal with escapes that begins at `at`.
fn quoted(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut at = at + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Whether the quote begins a character and not a lifetime.
fn is_char_literal(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        Some(byte) if *byte >= 0x80 => true,
        Some(_) => rest.get(2) == Some(&b'\''),
        None => false,
    }
}

/// A token of stripped source: a word, `::`, or one other character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// The line it is on, from 1.
    pub line: usize,
    /// Its text.
    pub text: &'a str,
}

/// The tokens of stripped source.
pub fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut found = vec![];
    for (number, line) in code.lines().enumerate() {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                length => length,
            };
            if !first.is_whitespace() {
                found.push(Token { line: number + 1, text: &rest[..length] });
            }
            rest = &rest[length..];
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let got = strip(text);
        assert_eq!(got.len(), text.len(), "{text}");
        assert_eq!(got.split_whitespace().collect::<Vec<_>>().join(" "), expect, "{text}");
    }

    #[test]
    fn comments_and_strings_become_spaces() {
        check("a // b\nc", "a c");
        check("a /* b /* c */ d */ e", "a e");
        check(r#"f("a // \" b", 'x', '"', '\'', 'a: 'b)"#, "f( , , , , 'a: 'b)");
        check("r#\"a \" b\"# c", "c");
        check("br\"a\\\" c", "b c");
        check("fn for_r<'a>(x: &'a str) {}", "fn for_r<'a>(x: &'a str) {}");
        check("\"never closed", "");
    }

    #[test]
    fn tokens_know_their_lines() {
        let got: Vec<(usize, &str)> =
            tokens("use a::b_1;\n mod x {").iter().map(|token| (token.line, token.text)).collect();
        assert_eq!(
            got,
            [(1, "use"), (1, "a"), (1, "::"), (1, "b_1"), (1, ";"), (2, "mod"), (2, "x"), (2, "{")]
        );
    }
}
