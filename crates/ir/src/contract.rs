//! What a module declares: its directives, its conf at each level, and how an inner level inherits.
//!
//! A module is one zero-sized type. Its confs are kept type-erased in [`Confs`] and are typed again at two
//! doors only: a directive's setter here, and `install` in the engine.

use std::any::{Any, TypeId};
use std::fmt::Debug;
use std::ops::BitOr;
use std::sync::Arc;

use crate::lowering::{Call, Fault, Merge};

/// Where a directive may stand, one bit a context, as in nginx's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contexts(pub u32);

impl Contexts {
    pub const MAIN: Self = Self(1);
    pub const EVENTS: Self = Self(1 << 1);
    pub const HTTP: Self = Self(1 << 2);
    pub const SERVER: Self = Self(1 << 3);
    pub const LOCATION: Self = Self(1 << 4);
    /// `if` in a server.
    pub const SERVER_IF: Self = Self(1 << 5);
    /// `if` in a location.
    pub const LOCATION_IF: Self = Self(1 << 6);
    pub const LIMIT_EXCEPT: Self = Self(1 << 7);
    pub const UPSTREAM: Self = Self(1 << 8);
    /// `http`, `server` and `location`: where most settings may stand.
    pub const SCOPES: Self = Self(1 << 2 | 1 << 3 | 1 << 4);
    pub const HTTP_SERVER: Self = Self(1 << 2 | 1 << 3);

    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Names as the documentation writes them, in its order.
    pub fn names(self) -> Vec<&'static str> {
        const NAMES: [(Contexts, &str); 9] = [
            (Contexts::MAIN, "main"),
            (Contexts::EVENTS, "events"),
            (Contexts::HTTP, "http"),
            (Contexts::SERVER, "server"),
            (Contexts::LOCATION, "location"),
            (Contexts::SERVER_IF, "if in server"),
            (Contexts::LOCATION_IF, "if in location"),
            (Contexts::LIMIT_EXCEPT, "limit_except"),
            (Contexts::UPSTREAM, "upstream"),
        ];
        NAMES.iter().filter(|(c, _)| self.meets(*c)).map(|(_, n)| *n).collect()
    }
}

impl BitOr for Contexts {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.or(other)
    }
}

/// How many arguments a directive takes, and whether it opens a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// Fewest arguments, the name not counted.
    pub least: u8,
    /// Most arguments; `u8::MAX` is no bound.
    pub most: u8,
    pub block: bool,
}

impl Takes {
    pub const NONE: Self = Self::of(0, 0);
    pub const ONE: Self = Self::of(1, 1);
    /// One argument, `on` or `off`.
    pub const FLAG: Self = Self::of(1, 1);
    pub const TWO: Self = Self::of(2, 2);
    pub const THREE: Self = Self::of(3, 3);
    pub const ONE_TWO: Self = Self::of(1, 2);
    pub const TWO_THREE: Self = Self::of(2, 3);
    pub const ONE_TO_THREE: Self = Self::of(1, 3);
    pub const ONE_TO_FOUR: Self = Self::of(1, 4);
    pub const ONE_MORE: Self = Self::of(1, u8::MAX);
    pub const TWO_MORE: Self = Self::of(2, u8::MAX);
    pub const BLOCK: Self = Self { least: 0, most: 0, block: true };

    pub const fn of(least: u8, most: u8) -> Self {
        Self { least, most, block: false }
    }

    #[must_use]
    pub const fn with_block(self) -> Self {
        Self { block: true, ..self }
    }

    pub const fn admits(self, arguments: usize) -> bool {
        arguments >= self.least as usize && (self.most == u8::MAX || arguments <= self.most as usize)
    }
}

/// What a directive's presence means (`weir --directives`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Supported,
    /// Checked, and needs nothing here for the reason given.
    Accepted(&'static str),
}

pub type Args<'a> = [weir_syntax::Word];

pub(crate) type SetFn<C> = fn(&mut C, &mut Call<'_>) -> Result<(), Fault>;

/// Which conf of the module a setter writes to.
pub enum Set<M: Module + ?Sized> {
    Main(SetFn<M::Main>),
    Scope(SetFn<M::Scope>),
}

/// A directive as its module declares it.
pub struct Directive<M: Module + ?Sized> {
    pub name: &'static str,
    pub contexts: Contexts,
    pub takes: Takes,
    pub set: Set<M>,
    pub standing: Standing,
}

impl<M: Module> Directive<M> {
    /// A directive of the outermost level of its module's kind (`http` for HTTP modules).
    pub const fn main(name: &'static str, contexts: Contexts, takes: Takes, set: SetFn<M::Main>) -> Self {
        Self { name, contexts, takes, set: Set::Main(set), standing: Standing::Supported }
    }

    /// A directive of a level that inner levels inherit from.
    pub const fn scope(name: &'static str, contexts: Contexts, takes: Takes, set: SetFn<M::Scope>) -> Self {
        Self { name, contexts, takes, set: Set::Scope(set), standing: Standing::Supported }
    }

    /// Marks the directive as one whose value is checked but needs nothing, and says why in one line.
    #[must_use]
    pub const fn accepted(self, reason: &'static str) -> Self {
        Self { standing: Standing::Accepted(reason), ..self }
    }
}

/// A module: what can be written of it. `Main` is kept once, `Scope` at each level.
pub trait Module: Sync + 'static {
    /// nginx's name without `ngx_` and `_module`, as in the directive table; a module of weir's own is named by its
    /// directives' prefix.
    const NAME: &'static str;
    type Main: Conf;
    type Scope: Conf;
    const DIRECTIVES: &'static [Directive<Self>];

    /// After the whole `http` block was read and before levels inherit: defaults and checks of the main conf.
    fn init(main: &mut Self::Main, merge: &mut Merge<'_>) -> Result<(), Fault> {
        let _ = (main, merge);
        Ok(())
    }
}

/// What a module keeps at one level.
pub trait Conf: Default + Clone + Debug + Send + Sync + 'static {
    /// Whether [`Conf::inherit`] runs also for a level in which the module was not mentioned. Where it does
    /// not, such a level shares the outer level's conf.
    const EVERY_LEVEL: bool = false;

    /// Takes over from the enclosing level what this one leaves open, and checks what can be judged only now.
    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault>;
}

impl Conf for () {
    fn inherit(&mut self, (): &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// A setting that an inner block may leave to the outer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T>(Option<T>);

impl<T> Default for Setting<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Setting<T> {
    pub const fn new(value: T) -> Self {
        Self(Some(value))
    }

    pub const fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }

    pub const fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Sets it; a second time is nginx's `"name" directive is duplicate`.
    pub fn put(&mut self, call: &Call<'_>, value: T) -> Result<(), Fault> {
        if self.0.is_some() {
            return Err(call.duplicate());
        }
        self.0 = Some(value);
        Ok(())
    }

    /// Sets it whatever stood there.
    pub fn replace(&mut self, value: T) {
        self.0 = Some(value);
    }

    pub fn unset(&mut self) {
        self.0 = None;
    }

    /// Reads the value only where nothing was set before, so that a duplicate is told before a bad value.
    pub fn put_with(
        &mut self,
        call: &mut Call<'_>,
        read: impl FnOnce(&mut Call<'_>) -> Result<T, Fault>,
    ) -> Result<(), Fault> {
        if self.0.is_some() {
            return Err(call.duplicate());
        }
        self.0 = Some(read(call)?);
        Ok(())
    }
}

impl<T: Clone> Setting<T> {
    pub fn inherit(&mut self, outer: &Self) {
        if self.0.is_none() {
            self.0.clone_from(&outer.0);
        }
    }

    /// The value, or the default where no level set one.
    pub fn or(&self, default: T) -> T {
        self.0.clone().unwrap_or(default)
    }
}

impl Setting<bool> {
    /// `on` or `off`.
    pub fn flag(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.put_with(call, |c| c.flag())
    }
}

impl Setting<u64> {
    /// A size in bytes (`k`, `m`).
    pub fn size(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.put_with(call, |c| c.size())
    }

    /// An offset in bytes (`k`, `m`, `g`).
    pub fn offset(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.put_with(call, |c| c.offset())
    }

    /// A time in milliseconds.
    pub fn msec(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.put_with(call, |c| c.msec())
    }

    /// A time in seconds.
    pub fn sec(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.put_with(call, |c| c.sec())
    }

    /// A plain number.
    pub fn number(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.put_with(call, |c| c.number())
    }
}

impl<T: Copy> Setting<T> {
    /// One of a list of words.
    pub fn one_of(&mut self, call: &mut Call<'_>, words: &[(&str, T)]) -> Result<(), Fault> {
        self.put_with(call, |c| c.one_of(words))
    }
}

/// The names of a level's directives whose values need no keeping: a second one is a duplicate all the same.
#[derive(Clone, Debug, Default)]
pub struct Once(Vec<Box<[u8]>>);

impl Once {
    /// Reads a value for the sake of its check.
    pub fn read<T>(
        &mut self,
        call: &mut Call<'_>,
        read: impl FnOnce(&mut Call<'_>) -> Result<T, Fault>,
    ) -> Result<(), Fault> {
        if self.0.iter().any(|name| **name == *call.name()) {
            return Err(call.duplicate());
        }
        read(call)?;
        self.0.push(call.name().into());
        Ok(())
    }

    pub fn flag(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.read(call, |c| c.flag())
    }

    pub fn size(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.read(call, |c| c.size())
    }

    pub fn offset(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.read(call, |c| c.offset())
    }

    pub fn msec(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.read(call, |c| c.msec())
    }

    pub fn sec(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.read(call, |c| c.sec())
    }

    pub fn number(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.read(call, |c| c.number())
    }

    pub fn buffers(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        self.read(call, |c| c.buffers())
    }
}

impl Conf for Once {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// A conf with its type erased.
pub trait AnyConf: Any + Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn duplicate(&self) -> Arc<dyn AnyConf>;
}

impl<C: Conf> AnyConf for C {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn duplicate(&self) -> Arc<dyn AnyConf> {
        Arc::new(self.clone())
    }
}

/// The confs of all modules at one level; a level that says nothing of a module shares the outer conf.
#[derive(Clone, Debug, Default)]
pub struct Confs {
    slots: Vec<(TypeId, Arc<dyn AnyConf>)>,
}

impl Confs {
    fn slot(&self, module: TypeId) -> Option<&Arc<dyn AnyConf>> {
        self.slots.iter().find(|(id, _)| *id == module).map(|(_, conf)| conf)
    }

    fn slot_mut(&mut self, module: TypeId, default: impl FnOnce() -> Arc<dyn AnyConf>) -> &mut dyn AnyConf {
        let at = match self.slots.iter().position(|(id, _)| *id == module) {
            Some(at) => at,
            None => {
                self.slots.push((module, default()));
                self.slots.len() - 1
            }
        };
        let conf = &mut self.slots[at].1;
        if Arc::get_mut(conf).is_none() {
            *conf = (**conf).duplicate();
        }
        Arc::get_mut(conf).expect("a fresh copy has one owner")
    }

    /// The scope conf of `M`, or its default where no level mentions the module.
    pub fn get<M: Module>(&self) -> std::borrow::Cow<'_, M::Scope> {
        self.typed::<M, M::Scope>()
    }

    /// The main conf of `M`.
    pub fn main<M: Module>(&self) -> std::borrow::Cow<'_, M::Main> {
        self.typed::<M, M::Main>()
    }

    fn typed<M: Module, C: Conf>(&self) -> std::borrow::Cow<'_, C> {
        match self.slot(TypeId::of::<M>()).and_then(|c| (**c).as_any().downcast_ref::<C>()) {
            Some(conf) => std::borrow::Cow::Borrowed(conf),
            None => std::borrow::Cow::Owned(C::default()),
        }
    }

    pub fn get_mut<M: Module>(&mut self) -> &mut M::Scope {
        self.typed_mut::<M, M::Scope>()
    }

    pub fn main_mut<M: Module>(&mut self) -> &mut M::Main {
        self.typed_mut::<M, M::Main>()
    }

    fn typed_mut<M: Module, C: Conf>(&mut self) -> &mut C {
        self.slot_mut(TypeId::of::<M>(), || Arc::new(C::default()))
            .as_any_mut()
            .downcast_mut()
            .expect("main confs and scope confs are kept apart, so a slot has its module's type")
    }
}

/// A directive without its module's type.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    pub name: &'static str,
    pub contexts: Contexts,
    pub takes: Takes,
    pub standing: Standing,
}

/// What lowering needs of a module, its types erased.
pub trait AnyModule: Sync {
    fn name(&self) -> &'static str;
    fn directives(&self) -> Vec<Declared>;
    /// Runs the setter of the directive at `index` on the confs of the level that the call stands in.
    fn set(&self, index: usize, call: &mut Call<'_>) -> Result<(), Fault>;
    fn init(&self, merge: &mut Merge<'_>) -> Result<(), Fault>;
    /// Completes the inner level from the outer one.
    fn inherit(&self, inner: &mut Confs, outer: &Confs, merge: &mut Merge<'_>) -> Result<(), Fault>;
}

impl<M: Module> AnyModule for M {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn directives(&self) -> Vec<Declared> {
        let declared = |d: &Directive<M>| Declared {
            name: d.name,
            contexts: d.contexts,
            takes: d.takes,
            standing: d.standing,
        };
        M::DIRECTIVES.iter().map(declared).collect()
    }

    fn set(&self, index: usize, call: &mut Call<'_>) -> Result<(), Fault> {
        // The conf is out of its slot while its setter runs, so that the setter may use the rest of the call.
        match M::DIRECTIVES[index].set {
            Set::Main(set) => {
                let mut conf = std::mem::take(call.main_confs().main_mut::<M>());
                let result = set(&mut conf, call);
                *call.main_confs().main_mut::<M>() = conf;
                result
            }
            Set::Scope(set) => {
                let mut conf = std::mem::take(call.scope_confs().get_mut::<M>());
                let result = set(&mut conf, call);
                *call.scope_confs().get_mut::<M>() = conf;
                result
            }
        }
    }

    fn init(&self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        let mut main = std::mem::take(merge.main_confs().main_mut::<M>());
        let result = M::init(&mut main, merge);
        *merge.main_confs().main_mut::<M>() = main;
        result
    }

    fn inherit(&self, inner: &mut Confs, outer: &Confs, merge: &mut Merge<'_>) -> Result<(), Fault> {
        let id = TypeId::of::<M>();
        if !M::Scope::EVERY_LEVEL && inner.slot(id).is_none() {
            if let Some(conf) = outer.slot(id) {
                inner.slots.push((id, Arc::clone(conf)));
            }
            return Ok(());
        }
        let outer = outer.get::<M>();
        inner.get_mut::<M>().inherit(&outer, merge)
    }
}
