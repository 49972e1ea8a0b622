//! The layers of the crate `raft-kv`: one table, which ARCHITECTURE.md shows and the import rule reads.
//!
//! A file imports from its own top-level module or from a layer below, never sideways or up. The words
//! (layer 0) are one family and may name each other; `sim` may use everything; tests are free.

use super::Finding;
use super::source::{Token, tokens};

/// One layer, lowest first.
struct Layer {
    name: &'static str,
    modules: &'static [&'static str],
    duty: &'static str,
}

const LAYERS: &[Layer] = &[
    Layer {
        name: "0 words",
        modules: &["codec", "error", "limits", "types", "config", "planted"],
        duty: "what everything else is said in: types, bounds, errors, the bounded codec",
    },
    Layer {
        name: "1 pure",
        modules: &["raft", "machine", "pki", "watch"],
        duty: "no I/O, no clock, no async, no threads, no hash order; values in, values out",
    },
    Layer {
        name: "2 edges",
        modules: &["storage", "net", "clock"],
        duty: "the only users of the disk, of RocksDB, of sockets and of the clock",
    },
    Layer {
        name: "3 loop",
        modules: &["node"],
        duty: "calls the stages in the order in which the data flows",
    },
    Layer { name: "4 doors", modules: &["client"], duty: "what a program that links the crate calls" },
    Layer {
        name: "5 typed",
        modules: &["orchestration"],
        duty: "tasks and state of an orchestrator, on transactions of keys",
    },
];
/// May import everything, and nothing imports it.
const SIMULATOR: &str = "sim";
const SOURCE: &str = "raft-kv/src/";
const BEGIN: &str = "<!-- layers: written by `cargo xtask fix` -->";
const END: &str = "<!-- end of layers -->";

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.modules.contains(&module))
}

/// Why a file of `own` may not import `other`, if it may not.
fn refusal(own: &str, other: &str) -> Option<String> {
    if own == other || own == SIMULATOR {
        return None;
    }
    if other == SIMULATOR {
        return Some(format!("{own} imports sim, which nothing may need"));
    }
    let Some(theirs) = layer_of(other) else {
        return Some(format!(
            "crate::{other} is not in the table of layers; add the module to it, or name the item where it is defined"
        ));
    };
    let Some(ours) = layer_of(own) else {
        return Some(format!("module {own} is not in the table of layers"));
    };
    let way = match theirs.cmp(&ours) {
        std::cmp::Ordering::Less => return None,
        std::cmp::Ordering::Equal if ours == 0 => return None,
        std::cmp::Ordering::Equal => "sideways",
        std::cmp::Ordering::Greater => "up",
    };
    Some(format!(
        "{own} ({}) imports {way}: {other} ({}); move what both need into a layer below",
        LAYERS[ours].name, LAYERS[theirs].name
    ))
}

/// The imports of one file, given its stripped source, that break the rule.
pub fn imports(path: &str, code: &str) -> Vec<Finding> {
    let Some(inner) = path.strip_prefix(SOURCE) else { return vec![] };
    let modules: Vec<&str> = inner.trim_end_matches(".rs").split('/').filter(|part| *part != "mod").collect();
    let own = modules[0];
    let is_test = |part: &&str| *part == "tests" || part.ends_with("_tests");
    if own == "lib" || modules.iter().any(is_test) {
        return vec![];
    }
    let mut findings = vec![];
    for (line, other) in named(&tokens(code), modules.len()) {
        if let Some(why) = refusal(own, other) {
            findings.push(Finding::new(path, line, why));
        }
    }
    findings.dedup();
    findings
}

/// The top-level modules that the tokens of a file name, the file's own module being `depth` below the
/// crate. Code under `#[cfg(test)]` is left out.
fn named<'a>(tokens: &[Token<'a>], depth: usize) -> Vec<(usize, &'a str)> {
    let mut found = vec![];
    // For each open brace: whether it is an inline module's, and whether it is only for tests.
    let mut braces: Vec<(bool, bool)> = vec![];
    let mut test_next = false;
    let mut module_next = false;
    let mut at = 0;
    while at < tokens.len() {
        let text = tokens[at].text;
        match text {
            "#" if is_cfg_test(&tokens[at..]) => test_next = true,
            "mod" => module_next = true,
            ";" => (module_next, test_next) = (false, false),
            "{" => {
                let in_test = test_next || braces.last().is_some_and(|(_, test)| *test);
                braces.push((module_next, in_test));
                (module_next, test_next) = (false, false);
            }
            "}" => {
                braces.pop();
            }
            "crate" | "super" if !test_next && !braces.last().is_some_and(|(_, test)| *test) => {
                let inline = braces.iter().filter(|(module, _)| *module).count();
                let (end, from_crate) = climb(tokens, at, depth + inline);
                if from_crate {
                    at = heads(tokens, end, &mut found);
                    continue;
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Walks `crate::` or `super::super::…` from `at`; says where the path goes on and whether it stands at
/// the root of the crate.
fn climb(tokens: &[Token], at: usize, depth: usize) -> (usize, bool) {
    let is = |index: usize, text: &str| tokens.get(index).is_some_and(|token| token.text == text);
    if is(at, "crate") {
        return if is(at + 1, "::") { (at + 2, true) } else { (at + 1, false) };
    }
    let (mut at, mut steps) = (at, 0);
    while is(at, "super") && is(at + 1, "::") {
        (at, steps) = (at + 2, steps + 1);
    }
    // `super` alone, as in `pub(super)`.
    if steps == 0 { (at + 1, false) } else { (at, steps >= depth) }
}

/// Takes the first words of the path or group of paths at `at`; says where to go on.
fn heads<'a>(tokens: &[Token<'a>], at: usize, found: &mut Vec<(usize, &'a str)>) -> usize {
    let Some(first) = tokens.get(at) else { return at };
    if first.text != "{" {
        let is_macro = tokens.get(at + 1).is_some_and(|token| token.text == "!");
        let is_word = first.text.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if is_word && !is_macro && first.text != "self" {
            found.push((first.line, first.text));
        }
        return at + 1;
    }
    let (mut depth, mut at, mut head) = (1, at + 1, true);
    while depth > 0 {
        let Some(token) = tokens.get(at) else { return at };
        match token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," => head = depth == 1,
            "self" => head = false,
            text => {
                if head && depth == 1 {
                    found.push((token.line, text));
                }
                head = false;
            }
        }
        at += 1;
    }
    at
}

fn is_cfg_test(tokens: &[Token]) -> bool {
    let words: Vec<&str> = tokens.iter().take(20).map(|token| token.text).collect();
    let Some(end) = words.iter().position(|word| *word == "]") else { return false };
    words.starts_with(&["#", "[", "cfg", "("])
        && words[..end].contains(&"test")
        && !words[..end].contains(&"not")
}

/// The table as ARCHITECTURE.md shows it.
fn table() -> String {
    let mut rows = String::from("| layer | modules | duty |\n|---|---|---|\n");
    for layer in LAYERS {
        let modules = layer.modules.iter().map(|module| format!("`{module}`")).collect::<Vec<_>>().join(" ");
        rows.push_str(&format!("| {} | {modules} | {} |\n", layer.name, layer.duty));
    }
    rows.push_str("| beside | `sim` | may use every layer; nothing uses it |\n");
    rows
}

/// What is wrong with the table in ARCHITECTURE.md.
pub fn map(path: &str, text: &str) -> Vec<Finding> {
    match with_table(text) {
        Err(why) => vec![Finding::new(path, 0, why)],
        Ok(fixed) if fixed != text => {
            let line = text.lines().position(|line| line == BEGIN).map_or(0, |line| line + 1);
            vec![Finding::new(
                path,
                line,
                "the table of layers is not the one that is checked; `cargo xtask fix`",
            )]
        }
        Ok(_) => vec![],
    }
}

/// `text` with the table of layers between its two marks.
pub fn with_table(text: &str) -> Result<String, String> {
    let marks = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        marks.ok_or(format!("ARCHITECTURE.md must hold the lines {BEGIN:?} and {END:?}"))?;
    Ok(format!("{before}{BEGIN}\n{}{END}{after}", table()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_in_the_map_is_held() {
        let good = with_table(&format!("# Map\n{BEGIN}\nold\n{END}\nmore\n")).unwrap();
        assert!(good.contains("| 1 pure | `raft` `machine`") && good.ends_with("\nmore\n"));
        assert_eq!(map("ARCHITECTURE.md", &good), []);
        assert_eq!(map("ARCHITECTURE.md", &good.replace("`raft` ", ""))[0].line, 2);
        assert_eq!(map("ARCHITECTURE.md", "# Map\n").len(), 1);
    }

    #[test]
    fn no_module_is_in_two_layers() {
        let mut all: Vec<&str> = LAYERS.iter().flat_map(|layer| layer.modules).copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(layer_of(SIMULATOR).is_none());
    }

    #[test]
    fn paths_are_read_in_every_form() {
        let check = |code: &str, expect: &[&str]| {
            let got: Vec<&str> = named(&tokens(code), 1).into_iter().map(|(_, name)| name).collect();
            assert_eq!(got, expect, "{code}");
        };
        check("use crate::a::{b, c};", &["a"]);
        check("use crate::{a, b::{c, d}, e::f as g, self};", &["a", "b", "e"]);
        check("impl crate::a::T for X { fn f() -> super::b::X { crate::c!() } }", &["a", "b"]);
        check("pub(in super) fn f(); pub(super) mod x { use super::y::Z; use super::super::w::V; }", &["w"]);
        check("#[cfg(test)] mod tests { use crate::a; mod x { use crate::b; } } use crate::c;", &["c"]);
        check("#[cfg(test)] use crate::a; use crate::b;", &["b"]);
        check("#[cfg(not(test))] use crate::a;", &["a"]);
    }
}
