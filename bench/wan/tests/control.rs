//! The network changed from outside.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;

use meridian_wan::control::{Command, ControlError, send, serve};
use meridian_wan::{Wan, WanDelays};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn wan() -> Wan {
    Wan::new(WanDelays::new(["us-east", "eu", "ap"]).unwrap()).unwrap()
}

/// Which directions a status says are cut.
fn cut(status: &str) -> Vec<String> {
    let status: serde_json::Value = serde_json::from_str(status).unwrap();
    let links = status["links"].as_array().unwrap();
    let cut = links.iter().filter(|link| link["cut"] == true);
    let mut cut: Vec<_> =
        cut.map(|link| format!("{}>{}", link["from"], link["to"]).replace('"', "")).collect();
    cut.sort();
    cut
}

#[tokio::test]
async fn every_command_answers_with_the_state_after_it() {
    let wan = wan();
    let server = serve(wan.clone(), 0).await.unwrap();
    let one = ["eu>us-east", "us-east>eu"];
    let both = ["ap>eu", "eu>ap", "eu>us-east", "us-east>eu"];
    for (line, expected) in [
        ("status", &[][..]),
        ("cut us-east eu", &one),
        ("status", &one),
        ("cut eu", &both),
        ("heal ap eu", &one),
        ("cut ap", &["ap>eu", "ap>us-east", "eu>ap", "eu>us-east", "us-east>ap", "us-east>eu"]),
        ("heal ap", &one),
        ("heal", &[]),
    ] {
        let answer = send(server.address(), &line.parse().unwrap()).await.unwrap();
        assert_eq!(cut(&answer), expected, "after {line:?}");
        assert_eq!(cut(&serde_json::to_string(&wan.status()).unwrap()), expected);
    }
}

#[tokio::test]
async fn an_unknown_region_is_answered_with_the_known_ones() {
    let server = serve(wan(), 0).await.unwrap();
    let error = send(server.address(), &Command::Isolate("mars".to_owned())).await.unwrap_err();
    assert_eq!(error.to_string(), r#"unknown region "mars"; the regions are: us-east, eu, ap"#);
}

#[tokio::test]
async fn nobody_there_is_an_error_that_says_where() {
    let server = serve(wan(), 0).await.unwrap();
    let address = server.address();
    drop(server);
    // The port closes when the aborted task is dropped.
    tokio::task::yield_now().await;
    let error = send(address, &Command::Status).await.unwrap_err();
    assert!(matches!(error, ControlError::NoAnswer { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn only_the_first_line_counts_and_it_must_be_short() {
    let wan = wan();
    let server = serve(wan.clone(), 0).await.unwrap();
    let answers = HashMap::from([
        ("POST / HTTP/1.1\r\n\r\ncut eu\n".to_owned(), "error: unknown command \"POST / HTTP/1.1\""),
        (format!("cut {}\n", "x".repeat(2_000)), ""),
        ("status".to_owned(), ""),
    ]);
    for (sent, expected) in answers {
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        connection.write_all(sent.as_bytes()).await.unwrap();
        connection.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A connection closed with bytes unread is reset after the answer.
        let _ = connection.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with(expected) && (answer.is_empty() == expected.is_empty()), "{answer}");
    }
    assert!(wan.links().iter().all(|link| !link.cut));
}

#[test]
fn commands_are_written_as_they_are_read() {
    for line in ["cut a b", "cut a", "heal a b", "heal a", "heal", "status"] {
        assert_eq!(line.parse::<Command>().unwrap().to_string(), line);
    }
    for line in ["", "cut", "cut a b c", "status now", "CUT a"] {
        let error = line.parse::<Command>().unwrap_err().to_string();
        assert!(error.contains("cut A B"), "{error}");
    }
}
