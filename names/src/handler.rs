//! Answers DNS requests from the directory, and passes on what is not ours.

use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::{DNSClass, Name, RData, Record, RecordType, rdata};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{Catalog, MessageResponseBuilder};
use rand::seq::SliceRandom;
use tokio::sync::Semaphore;
use tracing::debug;

use crate::directory::{Answer, Directory, Question};

/// Seconds for which an answer may be kept: a container may be gone then.
const TTL: u32 = 2;
/// Most addresses in one answer.
const MOST_ADDRESSES: usize = 256;
/// Most bytes of an answer by UDP, so that no packet is cut on its way (DNS flag day 2020).
const MOST_BY_UDP: u16 = 1232;
/// Requests that others are asked at the same time.
const PASSED_ON: usize = 512;

/// What all sockets share.
pub(crate) struct Shared {
    pub(crate) directory: RwLock<Directory>,
    /// The site's servers; `None` if what is not ours is refused.
    pub(crate) upstream: RwLock<Option<Arc<Catalog>>>,
    passed_on: Semaphore,
}

/// Answers the requests of all sockets.
pub(crate) struct Handler(pub(crate) Arc<Shared>);

/// What becomes of a request.
enum Reply {
    Records(Vec<Record>),
    Code(ResponseCode),
    PassOn,
}

impl Shared {
    pub(crate) fn new(directory: Directory) -> Arc<Self> {
        Arc::new(Self {
            directory: RwLock::new(directory),
            upstream: RwLock::new(None),
            passed_on: Semaphore::new(PASSED_ON),
        })
    }

    /// Changes the directory.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Directory) -> T) -> T {
        change(&mut self.directory.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::Code(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Reply::Code(ResponseCode::FormErr) };
        let asked = info.query.original();
        if asked.query_class() != DNSClass::IN {
            return Reply::Code(ResponseCode::Refused);
        }
        let name = info.query.name().to_string();
        let question = match asked.query_type() {
            RecordType::A => Question::V4,
            RecordType::AAAA => Question::V6,
            RecordType::PTR => match asked.name().parse_arpa_name() {
                Ok(network) if network.prefix_len() == network.max_prefix_len() => {
                    Question::NameOf(network.addr())
                }
                _ => Question::Other,
            },
            _ => Question::Other,
        };
        let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner);
        let answer =
            directory.answer(request.src().ip().to_canonical(), name.trim_end_matches('.'), question);
        drop(directory);
        let record = |data: RData| Record::from_rdata(asked.name().clone(), TTL, data);
        match answer {
            Answer::Addresses(mut addresses) => {
                addresses.shuffle(&mut rand::rng());
                addresses.truncate(MOST_ADDRESSES);
                let data = |address: std::net::IpAddr| match address {
                    std::net::IpAddr::V4(address) => RData::A(rdata::A(address)),
                    std::net::IpAddr::V6(address) => RData::AAAA(rdata::AAAA(address)),
                };
                Reply::Records(addresses.into_iter().map(data).map(record).collect())
            }
            Answer::Name(name) => match Name::from_ascii(format!("{name}.")) {
                Ok(name) => Reply::Records(vec![record(RData::PTR(rdata::PTR(name)))]),
                Err(_) => Reply::Code(ResponseCode::NXDomain),
            },
            Answer::Nothing => Reply::Code(ResponseCode::NoError),
            Answer::NoSuchName => Reply::Code(ResponseCode::NXDomain),
            Answer::NotOurs => Reply::PassOn,
            Answer::Refused => Reply::Code(ResponseCode::Refused),
        }
    }

    fn upstream(&self) -> Option<Arc<Catalog>> {
        self.upstream.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let (code, records) = match self.0.reply(request) {
            Reply::Records(records) => (ResponseCode::NoError, records),
            Reply::Code(code) => (code, Vec::new()),
            Reply::PassOn => match (self.0.upstream(), self.0.passed_on.try_acquire()) {
                (Some(upstream), Ok(_permit)) => {
                    return upstream.handle_request::<R, T>(request, response_handle).await;
                }
                (Some(_), Err(_)) => (ResponseCode::ServFail, Vec::new()),
                // Who asks goes on to the next server that it knows.
                (None, _) => (ResponseCode::Refused, Vec::new()),
            },
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = code;
        metadata.authoritative = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        metadata.recursion_available = true;
        let mut edns = Edns::new();
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(asked) = &request.edns {
            edns.set_max_payload(asked.max_payload().clamp(512, MOST_BY_UDP));
            builder.edns(&edns);
        }
        let response = builder.build(metadata, records.iter(), [], [], []);
        response_handle.send_response(response).await.unwrap_or_else(|reason| {
            debug!(%reason, client = %request.src(), "cannot answer");
            let mut metadata =
                Metadata::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
            metadata.response_code = ResponseCode::ServFail;
            ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
        })
    }
}
