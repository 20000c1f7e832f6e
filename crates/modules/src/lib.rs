//! Every nginx module, one file or folder each.

use weir_engine::contract::AnyInstall;

mod crypt;
pub mod http;
mod md5;

/// The modules of the `http` context, in the order in which their handlers run within a phase.
pub const HTTP: &[&dyn AnyInstall] = &[
    // The client's address, before anything asks for it.
    &http::realip::RealIp,
    // Limits, requests before connections as in nginx, both before anything costly.
    &http::limit_req::LimitReq,
    &http::limit_conn::LimitConn,
    // Access: cheap rules before files of users.
    &http::access::Access,
    &http::auth_basic::AuthBasic,
    // Content of a location, which stands alone; their order does not matter.
    &http::stub_status::StubStatus,
    &http::empty_gif::EmptyGif,
    // Variables, wherever they are asked for.
    &http::referer::Referer,
    &http::split_clients::SplitClients,
    &http::secure_link::SecureLink,
    // Filters of the head, after it is settled whether there is anything to send.
    &http::headers::Headers,
    // After everything: it runs in the log phase.
    &http::log::Log,
];

#[cfg(test)]
mod site;
