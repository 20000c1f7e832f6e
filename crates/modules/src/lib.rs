//! Every nginx module, one file or folder each, and the order in which they are asked.

pub mod http;
#[cfg(test)]
mod testing;

use weir_engine::contract::AnyInstall;

/// The modules of the `http` block, each phase and the chain of filters in this order.
pub const HTTP: &[&dyn AnyInstall] = &[
    // Before all else that defines variables: a `map` or `geo` of the same name takes precedence over `set`.
    &http::Rewrite,
    &http::Map,
    &http::Geo,
    &http::SplitClients,
    // The content phase: a directory's index before the listing of it, and last of all the file itself.
    &http::TryFiles,
    &http::Index,
    &http::Autoindex,
    &http::Static,
    // The first filter: it judges the response as its maker sent it, before any other filter changes it.
    &http::NotModified,
    // The last filter: it cuts ranges out of the body that all others have agreed on.
    &http::RangeFilter,
];
