//! `token`, `join-token`, `enrol`: who may become what with which token, the command that uses one, and
//! its use by clients and workers. A secret is printed only by the commands that are asked for it.

use raft_kv::client::{Handle, enrol as ask};
use raft_kv::net::{replace_credentials, write_credentials};
use raft_kv::types::{Role, TokenRecord};
use serde_json::{Value, json};

use crate::args::{EnrolArgs, JoinTokenArgs, TokenArgs, TokenCommand, TokenRole};
use crate::cli::cert::{files_json, files_of, files_text, prepare};
use crate::cli::member::join_endpoints;
use crate::cli::node::date;
use crate::connect::{connect, parse_endpoints};
use crate::failure::{Failure, Kind};
use crate::output::{Output, shell_word, table};
use crate::serve::join_command;

/// `raft-kv token`.
pub async fn run(args: &TokenArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    match &args.command {
        TokenCommand::Ls => {
            let tokens = handle.tokens().await?;
            output.answer(|| tokens_json(&tokens), || tokens_text(&tokens))
        }
        TokenCommand::Create { role, label, expires, uses } => {
            let role = role_of(*role);
            let (id, text) =
                handle.token_create(role, label, expires.unwrap_or(0), uses.unwrap_or(0)).await?;
            print(&handle, &id, role, &text, output).await
        }
        TokenCommand::Rotate { token } => {
            let (id, role) = find(&handle, token).await?;
            let (id, text) = handle.token_rotate(&id).await?;
            print(&handle, &id, role, &text, output).await
        }
        TokenCommand::Revoke { token } => {
            let (id, _) = find(&handle, token).await?;
            handle.token_revoke(&id).await?;
            output.answer(
                || json!({ "id": id, "revoked": true }),
                || format!("the token {id} is revoked: nobody joins with it any more"),
            )
        }
    }
}

/// `raft-kv join-token`.
pub async fn join_token(args: &JoinTokenArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    let (id, role) = find(&handle, &args.token).await?;
    let text = handle.token_text(&id).await?;
    let command = command(&handle, role, &text).await?;
    output.answer(
        || json!({ "id": id, "role": role.to_string(), "token": text, "command": command }),
        // The line to paste and nothing else.
        || format!("{command}\n"),
    )
}

/// `raft-kv enrol`.
pub async fn enrol(args: &EnrolArgs, output: &mut Output) -> Result<(), Failure> {
    let endpoints = parse_endpoints(&args.endpoints)?;
    // Before the token is used: a certificate that can't be stored is of no use.
    let folder = prepare(&args.out)?;
    let credentials = ask(args.token.trim(), &endpoints, &args.name).await?;
    if folder.join("key.pem").exists() {
        replace_credentials(&folder, &credentials)?;
    } else {
        write_credentials(&folder, &credentials)?;
    }
    let files = files_of(&folder);
    output.answer(|| files_json(&files), || files_text(&files))
}

fn role_of(role: TokenRole) -> Role {
    match role {
        TokenRole::Manager => Role::Manager,
        TokenRole::Client => Role::Client,
        TokenRole::Worker => Role::Worker,
    }
}

/// The token that is meant: by its id, or the one that every cluster has for a role.
async fn find(handle: &Handle, given: &str) -> Result<(String, Role), Failure> {
    let default = format!("default-{given}");
    let tokens = handle.tokens().await?;
    let named = |id: &str| tokens.iter().find(|(known, _)| known == id);
    let found = named(given).or_else(|| named(&default));
    found.map(|(id, record)| (id.clone(), record.role)).ok_or_else(|| {
        let why = format!("no token has the id {given:?}; `raft-kv token ls` lists them");
        Failure::new(Kind::NotFound, why)
    })
}

/// The command that uses a token, to be pasted where the new node is.
async fn command(handle: &Handle, role: Role, text: &str) -> Result<String, Failure> {
    let members = handle.members().await?.1;
    let mut endpoints = join_endpoints(&members);
    if role == Role::Worker {
        // A worker knows of no other manager than the one it is sent to.
        let asked = handle.info().await?.0.member;
        let addr =
            members.iter().find(|member| member.record.id == asked).map(|member| member.record.addr.clone());
        endpoints = addr.into_iter().chain(endpoints).take(1).collect();
    }
    Ok(match role {
        Role::Manager => join_command(text, None, &endpoints),
        Role::Client | Role::Worker => enrol_command(role, text, &endpoints),
    })
}

/// The command that enrols a client or worker, under the name of its machine.
fn enrol_command(role: Role, text: &str, endpoints: &[String]) -> String {
    format!(
        "raft-kv enrol --token {} --endpoints {} --name \"{role}-$(hostname)\" --out ./raft-kv-cert",
        shell_word(text),
        shell_word(&endpoints.join(","))
    )
}

async fn print(
    handle: &Handle,
    id: &str,
    role: Role,
    text: &str,
    output: &mut Output,
) -> Result<(), Failure> {
    let command = command(handle, role, text).await?;
    let what = if role == Role::Manager { "join" } else { "enrol" };
    output.answer(
        || json!({ "id": id, "role": role.to_string(), "token": text, "command": command }),
        || format!("{id}\n{text}\n\nTo {what} as a {role}, run on the new machine:\n  {command}\n"),
    )
}

fn ends(record: &TokenRecord) -> Option<i64> {
    Some(record.expires).filter(|at| *at != i64::MAX)
}

fn tokens_json(tokens: &[(String, TokenRecord)]) -> Value {
    let list = tokens.iter().map(|(id, record)| {
        json!({
            "id": id, "role": record.role.to_string(), "label": record.label, "created": record.created,
            "expires": ends(record), "uses_left": record.uses,
        })
    });
    json!({ "tokens": list.collect::<Vec<_>>() })
}

fn tokens_text(tokens: &[(String, TokenRecord)]) -> String {
    let mut rows = vec![["ID", "ROLE", "CREATED", "EXPIRES", "USES LEFT", "LABEL"].map(str::to_owned)];
    rows.extend(tokens.iter().map(|(id, record)| {
        let uses = record.uses.map_or("any".to_owned(), |uses| uses.to_string());
        let expires = ends(record).map_or("never".to_owned(), date);
        [id.clone(), record.role.to_string(), date(record.created), expires, uses, record.label.clone()]
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use raft_kv::types::Sealed;

    use super::*;

    fn record(role: Role, label: &str, expires: i64, uses: Option<u64>) -> TokenRecord {
        let secret = Sealed(b"never-shown".as_slice().into());
        TokenRecord { role, secret, label: label.into(), created: 1_767_225_600, expires, uses }
    }

    #[test]
    fn a_token_is_listed_without_its_secret() {
        let tokens = [
            ("default-worker".to_owned(), record(Role::Worker, "made with the cluster", i64::MAX, None)),
            ("client-0a".to_owned(), record(Role::Client, "ci", 1_767_225_660, Some(2))),
        ];
        let json = tokens_json(&tokens);
        assert_eq!(
            json,
            serde_json::from_str::<Value>(
                r#"{"tokens":[
                {"id":"default-worker","role":"worker","label":"made with the cluster","created":1767225600,
                 "expires":null,"uses_left":null},
                {"id":"client-0a","role":"client","label":"ci","created":1767225600,
                 "expires":1767225660,"uses_left":2}]}"#
            )
            .unwrap()
        );
        let text = tokens_text(&tokens);
        assert_eq!(
            text,
            "ID              ROLE    CREATED               EXPIRES               USES LEFT  LABEL\n\
             default-worker  worker  2026-01-01T00:00:00Z  never                 any        made with the cluster\n\
             client-0a       client  2026-01-01T00:00:00Z  2026-01-01T00:01:00Z  2          ci\n"
        );
        assert!(!format!("{json}{text}").contains("shown"));
    }

    #[test]
    fn the_command_can_be_pasted() {
        let endpoints = ["a:1".to_owned(), "[::1]:2".to_owned()];
        assert_eq!(
            enrol_command(Role::Worker, "T-1", &endpoints),
            "raft-kv enrol --token T-1 --endpoints 'a:1,[::1]:2' --name \"worker-$(hostname)\" --out ./raft-kv-cert"
        );
    }
}
