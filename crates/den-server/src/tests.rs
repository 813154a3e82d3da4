//! The shell around the endpoints: token, Host, bodies, fallbacks, panics, the contract's file.
//! The endpoints themselves are tested with a real daemon, in `tests/e2e` of the workspace.

use std::{net::SocketAddr, path::Path};

use axum::{
    Json, Router,
    body::Body,
    http::{Request, Response, StatusCode, header},
    routing::{get, post},
};
use den_api::{CreateComputer, ErrorBody, ErrorDetail};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::*;

const TOKEN: &str = "den_test";

fn shell() -> Router {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/v1/create", post(|extract::Body(create): extract::Body<CreateComputer>| async { Json(create) }))
        .route("/v1/step/{n}", get(|extract::Path(n): extract::Path<u64>| async move { n.to_string() }))
        .route(
            "/v1/panic",
            get(|| async {
                if true {
                    panic!("on purpose")
                }
            }),
        )
        .route("/v1/internal", get(|| async { ApiError::internal("the secret cause") }));
    guarded(routes, Token::new(TOKEN))
}

async fn call(request: Request<Body>) -> Response<Body> {
    TowerToHyperService::new(shell()).call(request).await.unwrap()
}

async fn refusal(response: Response<Body>) -> (StatusCode, ErrorDetail) {
    let (status, id) = (response.status(), response.headers()[REQUEST_ID_HEADER].clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let body: ErrorBody = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
    assert_eq!(body.error.request_id.as_deref(), Some(id.to_str().unwrap()));
    (status, body.error)
}

fn request(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
}

async fn refused(request: Request<Body>) -> (u16, String, ErrorDetail) {
    let (status, detail) = refusal(call(request).await).await;
    (status.as_u16(), detail.code.clone(), detail)
}

#[tokio::test]
async fn only_the_token_opens_v1() {
    for value in [None, Some("Bearer den_tesT"), Some("Bearer"), Some("Basic den_test")] {
        for path in ["/v1/create", "/v1/nothing", "/v1"] {
            let mut builder = Request::builder().method("POST").uri(path);
            if let Some(value) = value {
                builder = builder.header(header::AUTHORIZATION, value);
            }
            let (status, code, detail) = refused(builder.body(Body::empty()).unwrap()).await;
            assert_eq!((status, code.as_str()), (401, "unauthorized"), "{value:?} {path}");
            assert!(detail.hint.is_some());
        }
    }
    assert_eq!(call(request("POST", "/v1/create").body(Body::empty()).unwrap()).await.status(), 200);
    assert_eq!(call(Request::get("/healthz").body(Body::empty()).unwrap()).await.status(), 200);
}

#[tokio::test]
async fn a_rebound_name_is_refused_on_loopback() {
    let ends = |listening: &str| Ends { listening: listening.parse().unwrap(), peer: "127.0.0.1:9".parse().unwrap() };
    let with = |listening: &str, host: &str| {
        let mut request = Request::get("/healthz").header(header::HOST, host).body(Body::empty()).unwrap();
        request.extensions_mut().insert(ends(listening));
        request
    };
    let (status, code, _) = refused(with("127.0.0.1:7878", "evil.test:7878")).await;
    assert_eq!((status, code.as_str()), (403, "host_refused"));
    assert_eq!(call(with("127.0.0.1:7878", "localhost:7878")).await.status(), 200);
    assert_eq!(call(with("0.0.0.0:7878", "box.example:7878")).await.status(), 200);
}

#[tokio::test]
async fn bodies_that_are_not_understood_are_refused_with_the_reason() {
    let check = async |body: Body, words: &str| {
        let (status, code, detail) = refused(request("POST", "/v1/create").body(body).unwrap()).await;
        assert_eq!((status, code.as_str()), (400, "bad_request"));
        assert!(detail.message.contains(words), "{} lacks {words}", detail.message);
        assert!(detail.hint.is_some(), "{} has no hint", detail.message);
    };
    check(Body::from("{\"nme\":\"x\"}"), "unknown field `nme`").await;
    check(Body::from("{\"pids\":\"x\"}"), "invalid type: string \"x\"").await;
    check(Body::from("name=x"), "no JSON").await;
    check(Body::from("{"), "no JSON").await;
    check(Body::from(&b"{\"name\":\"\xff\"}"[..]), "no JSON").await;
    check(Body::from(vec![b' '; JSON_BYTES_MAX + 1]), "longer than 1048576 bytes").await;
}

#[tokio::test]
async fn unknown_paths_methods_and_parameters_have_our_body() {
    let get = |path| request("GET", path).body(Body::empty()).unwrap();
    let (status, code, _) = refused(get("/v1/nothing")).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    let (status, code, _) = refused(get("/elsewhere")).await;
    assert_eq!((status, code.as_str()), (404, "not_found"));
    let (status, code, _) = refused(get("/v1/step/three")).await;
    assert_eq!((status, code.as_str()), (400, "bad_request"));

    let response = call(get("/v1/create")).await;
    assert_eq!(response.headers()[header::ALLOW], "POST");
    let (status, detail) = refusal(response).await;
    assert_eq!((status.as_u16(), detail.code.as_str()), (405, "method_not_allowed"));
}

#[tokio::test]
async fn our_own_faults_show_a_request_id_and_no_cause() {
    for path in ["/v1/panic", "/v1/internal"] {
        let (status, code, detail) = refused(request("GET", path).body(Body::empty()).unwrap()).await;
        assert_eq!((status, code.as_str()), (500, "internal"));
        assert!(!detail.message.contains("purpose") && !detail.message.contains("secret"));
    }
}

#[tokio::test]
async fn requests_over_a_socket_and_an_end_while_one_is_open() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let served = tokio::spawn(serve(listener, shell(), async { ended.await.unwrap() }));

    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = async |head: &str| {
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut buffer = vec![0; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    let ok = answer("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(ok.starts_with("HTTP/1.1 200 ") && ok.ends_with("ok"), "{ok}");
    let no = answer("GET /healthz HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert!(no.starts_with("HTTP/1.1 403 "), "{no}");

    end.send(()).unwrap();
    served.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[test]
fn the_contract_in_the_repository_is_the_one_of_the_code() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi.json");
    let generated = openapi_json();
    if std::env::var_os("DEN_UPDATE").is_some() {
        std::fs::write(&file, &generated).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == generated,
        "openapi.json is not what the code says; rewrite it with `DEN_UPDATE=1 cargo test -p den-server contract` and look at the diff"
    );
}

#[test]
fn every_operation_has_a_name_of_its_own_a_tag_and_a_refusal() {
    let api = serde_json::to_value(openapi()).unwrap();
    let mut names = std::collections::BTreeSet::new();
    let mut count = 0;
    for (path, item) in api["paths"].as_object().unwrap() {
        assert!(!path.contains('*'), "{path}");
        for (method, operation) in item.as_object().unwrap() {
            count += 1;
            assert!(operation["responses"]["default"].is_object(), "{method} {path} has no refusal");
            assert!(operation["tags"].is_array(), "{method} {path} has no tag");
            names.insert(operation["operationId"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(names.len(), count, "two operations share a name");
    assert!(count >= 30, "{count} operations");
}
