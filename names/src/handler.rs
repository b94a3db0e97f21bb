//! Answers DNS requests from the directory, and passes on what is not ours.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::{DNSClass, Name, RData, Record, RecordType, rdata};
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{Catalog, MessageResponse, MessageResponseBuilder};
use rand::seq::SliceRandom;
use tracing::debug;

use crate::directory::{Answer, Directory, Question};

/// Seconds for which an answer may be kept: a container may be gone then.
const TTL: u32 = 2;
/// Most bytes of an answer by UDP, so that no packet is cut on its way (DNS flag day 2020).
pub(crate) const MOST_BY_UDP: u16 = 1232;
/// Most bytes of an answer by UDP to a client that names no size (RFC 1035).
const SMALL: u16 = 512;
/// Requests that others are asked at the same time, in all and for one client.
const PASSED_ON: u32 = 512;
const OF_A_CLIENT: u32 = 64;

/// What all sockets share.
pub(crate) struct Shared {
    directory: RwLock<Directory>,
    /// The site's servers; `None` if what is not ours is refused.
    upstream: RwLock<Option<Arc<Catalog>>>,
    /// How many requests others are asked for each client.
    passed_on: Mutex<HashMap<IpAddr, u32>>,
}

/// What becomes of a request.
pub(crate) enum Reply {
    /// This answer.
    Now(Vec<u8>),
    /// The answer of others.
    Later(Box<PassedOn>),
    /// Nothing.
    Never,
}

/// A request for which others are asked.
pub(crate) struct PassedOn {
    request: Request,
    turn: Turn,
}

/// Permission to ask others, for as long as it lasts.
struct Turn {
    shared: Arc<Shared>,
    upstream: Arc<Catalog>,
    client: IpAddr,
}

impl Shared {
    pub(crate) fn new(directory: Directory) -> Arc<Self> {
        let (upstream, passed_on) = (RwLock::default(), Mutex::default());
        Arc::new(Self { directory: RwLock::new(directory), upstream, passed_on })
    }

    /// Changes the directory.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Directory) -> T) -> T {
        change(&mut self.directory.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the servers that answer what is not ours.
    pub(crate) fn upstream_is(&self, upstream: Option<Arc<Catalog>>) {
        *self.upstream.write().unwrap_or_else(PoisonError::into_inner) = upstream;
    }

    /// Returns whether anything is answered to this client.
    pub(crate) fn serves(&self, client: IpAddr) -> bool {
        self.directory.read().unwrap_or_else(PoisonError::into_inner).serves(client.to_canonical())
    }

    /// Answers the request in these bytes.
    pub(crate) fn reply(self: &Arc<Self>, bytes: &[u8], client: SocketAddr, protocol: Protocol) -> Reply {
        let Ok(request) = Request::from_bytes(bytes.to_vec(), client, protocol) else { return Reply::Never };
        // Who answers an answer may do so for ever.
        if request.metadata.message_type != MessageType::Query {
            return Reply::Never;
        }
        let (code, records) = match self.answer(&request) {
            Ok(records) => (ResponseCode::NoError, records),
            Err(Some(code)) => (code, Vec::new()),
            Err(None) => match self.turn(client.ip().to_canonical()) {
                Ok(turn) => return Reply::Later(Box::new(PassedOn { request, turn })),
                Err(code) => (code, Vec::new()),
            },
        };
        ours(&request, code, &records)
    }

    /// Returns our answer; `None` as the error if others have to answer.
    fn answer(&self, request: &Request) -> Result<Vec<Record>, Option<ResponseCode>> {
        if request.metadata.op_code != OpCode::Query {
            return Err(Some(ResponseCode::NotImp));
        }
        let info = request.request_info().map_err(|_| Some(ResponseCode::FormErr))?;
        let asked = info.query.original();
        if asked.query_class() != DNSClass::IN {
            return Err(Some(ResponseCode::Refused));
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
        let client = request.src().ip().to_canonical();
        let answer = directory.answer(client, name.trim_end_matches('.'), question);
        drop(directory);
        let record = |data: RData| Record::from_rdata(asked.name().clone(), TTL, data);
        match answer {
            Answer::Addresses(mut addresses) => {
                addresses.shuffle(&mut rand::rng());
                let data = |address| match address {
                    IpAddr::V4(address) => RData::A(rdata::A(address)),
                    IpAddr::V6(address) => RData::AAAA(rdata::AAAA(address)),
                };
                Ok(addresses.into_iter().map(data).map(record).collect())
            }
            Answer::Name(name) => match Name::from_ascii(format!("{name}.")) {
                Ok(name) => Ok(vec![record(RData::PTR(rdata::PTR(name)))]),
                Err(_) => Err(Some(ResponseCode::NXDomain)),
            },
            Answer::Nothing => Ok(Vec::new()),
            Answer::NoSuchName => Err(Some(ResponseCode::NXDomain)),
            Answer::NotKnownYet => Err(Some(ResponseCode::ServFail)),
            Answer::Refused => Err(Some(ResponseCode::Refused)),
            Answer::NotOurs => Err(None),
        }
    }

    /// Returns the permission to ask others for this client, or the code to answer.
    fn turn(self: &Arc<Self>, client: IpAddr) -> Result<Turn, ResponseCode> {
        let upstream = self.upstream.read().unwrap_or_else(PoisonError::into_inner).clone();
        // Who asks goes on to the next server that it knows.
        let upstream = upstream.ok_or(ResponseCode::Refused)?;
        let mut passed_on = self.passed_on();
        let in_all: u32 = passed_on.values().sum();
        let of_client = passed_on.get(&client).copied().unwrap_or(0);
        if of_client >= OF_A_CLIENT || in_all >= PASSED_ON {
            return Err(ResponseCode::ServFail);
        }
        passed_on.insert(client, of_client + 1);
        Ok(Turn { shared: self.clone(), upstream, client })
    }

    fn passed_on(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.passed_on.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PassedOn {
    /// Asks others, and returns their answer.
    pub(crate) async fn answer(self) -> Option<Vec<u8>> {
        let answer = Collected { protocol: self.request.protocol(), bytes: Arc::default() };
        self.turn.upstream.handle_request::<_, TokioTime>(&self.request, answer.clone()).await;
        answer.bytes.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut passed_on = self.shared.passed_on();
        if let Some(of_client) = passed_on.get_mut(&self.client) {
            *of_client -= 1;
            if *of_client == 0 {
                passed_on.remove(&self.client);
            }
        }
    }
}

/// Takes the answer that is to be sent.
#[derive(Clone)]
struct Collected {
    protocol: Protocol,
    bytes: Arc<Mutex<Option<Vec<u8>>>>,
}

#[async_trait]
impl ResponseHandler for Collected {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let (info, bytes) = encode(response, self.protocol)?;
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        Ok(info)
    }
}

/// Returns our answer.
fn ours(request: &Request, code: ResponseCode, records: &[Record]) -> Reply {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = code;
    metadata.authoritative = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
    metadata.recursion_available = true;
    let mut edns = Edns::new();
    let mut builder = MessageResponseBuilder::from_message_request(request);
    if let Some(asked) = &request.edns {
        edns.set_max_payload(asked.max_payload().clamp(SMALL, MOST_BY_UDP));
        builder.edns(&edns);
    }
    match encode(builder.build(metadata, records, [], [], []), request.protocol()) {
        Ok((_, bytes)) => Reply::Now(bytes),
        Err(reason) => {
            debug!(%reason, client = %request.src(), "cannot answer");
            Reply::Never
        }
    }
}

/// Returns the message in as many bytes as the client takes; one that does not fit says so.
fn encode<'a>(
    response: MessageResponse<
        '_,
        'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
    >,
    protocol: Protocol,
) -> Result<(ResponseInfo, Vec<u8>), NetError> {
    let most = match (protocol, response.edns()) {
        (Protocol::Udp, Some(edns)) => edns.max_payload().clamp(SMALL, MOST_BY_UDP),
        (Protocol::Udp, None) => SMALL,
        _ => u16::MAX,
    };
    let mut bytes = Vec::with_capacity(SMALL.into());
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(most);
    let info = response.destructive_emit(&mut encoder)?;
    Ok((info, bytes))
}

#[cfg(test)]
mod tests {
    use hickory_server::proto::op::{Message, Query};
    use hickory_server::proto::serialize::binary::BinDecodable;
    use proptest::prelude::*;

    use super::*;
    use crate::directory::Place;

    const CLIENT: &str = "10.5.1.2:1053";

    fn shared() -> Arc<Shared> {
        let mut directory = Directory::new("h1".to_owned());
        let place = |network: &str| vec![network.parse().unwrap()];
        directory.network_is(None, Place { whole: place("10.5.0.0/16"), own: place("10.5.1.0/24") });
        Shared::new(directory)
    }

    fn question(name: &str, record_type: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
        message
    }

    fn code(message: &Message, client: &str) -> Option<ResponseCode> {
        let bytes = message.to_vec().unwrap();
        match shared().reply(&bytes, client.parse().unwrap(), Protocol::Udp) {
            Reply::Now(answer) => Some(Message::from_bytes(&answer).unwrap().metadata.response_code),
            Reply::Later(_) | Reply::Never => None,
        }
    }

    #[test]
    fn only_this_hosts_containers_are_answered_and_an_answer_never() {
        let site = question("debian.org.", RecordType::A);
        // Nobody is there to answer it.
        assert_eq!(code(&site, CLIENT), Some(ResponseCode::Refused));
        assert_eq!(code(&question("a.flan.internal.", RecordType::A), CLIENT), Some(ResponseCode::ServFail));
        assert_eq!(
            code(&question("a.flan.internal.", RecordType::A), "10.5.2.2:53"),
            Some(ResponseCode::Refused)
        );
        let mut answer = site;
        answer.metadata.message_type = MessageType::Response;
        assert_eq!(code(&answer, CLIENT), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_not(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            changed in proptest::collection::vec((0..40usize, any::<u8>()), 0..4),
        ) {
            let (shared, client) = (shared(), CLIENT.parse().unwrap());
            shared.reply(&bytes, client, Protocol::Udp);
            let mut message = question("web.blue.flan.internal.", RecordType::A).to_vec().unwrap();
            for (at, byte) in changed {
                if let Some(place) = message.get_mut(at) {
                    *place = byte;
                }
            }
            if let Reply::Now(answer) = shared.reply(&message, client, Protocol::Udp) {
                prop_assert!(answer.len() <= usize::from(MOST_BY_UDP));
                prop_assert_eq!(&answer[..2], &message[..2]);
            }
        }
    }
}
