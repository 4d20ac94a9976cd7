//! The instrumentation scopes of a process and their numbers.

use std::sync::{Arc, PoisonError, RwLock};

use crate::span::{InstrumentationScope, ScopeId};

/// Most scopes of a process; what comes later counts as omnitrace's own. A
/// program has one for each library that it instruments.
const CAPACITY: usize = 4096;

/// Scopes by number; number 0 is omnitrace's own.
pub(crate) struct Scopes(RwLock<Vec<Arc<InstrumentationScope>>>);

impl Default for Scopes {
    fn default() -> Self {
        Self(RwLock::new(vec![Arc::new(
            InstrumentationScope::omnitrace(),
        )]))
    }
}

impl Scopes {
    pub(crate) fn number(&self, scope: &InstrumentationScope) -> ScopeId {
        let mut scopes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let at = match scopes.iter().position(|known| **known == *scope) {
            Some(at) => at,
            None if scopes.len() == CAPACITY => 0,
            None => {
                scopes.push(Arc::new(scope.clone()));
                scopes.len() - 1
            }
        };
        ScopeId(at as u16)
    }

    pub(crate) fn get(&self, id: ScopeId) -> Arc<InstrumentationScope> {
        let scopes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let scope = scopes.get(usize::from(id.0)).or(scopes.first());
        scope.map_or_else(|| Arc::new(InstrumentationScope::omnitrace()), Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scopes_have_one_number_and_too_many_count_as_omnitraces() {
        let scopes = Scopes::default();
        let scope = |name: &str| InstrumentationScope {
            name: name.into(),
            ..InstrumentationScope::omnitrace()
        };
        assert_eq!(
            scopes.number(&InstrumentationScope::omnitrace()),
            ScopeId(0)
        );
        assert_eq!(scopes.number(&scope("a")), ScopeId(1));
        assert_eq!(scopes.number(&scope("b")), ScopeId(2));
        assert_eq!(scopes.number(&scope("a")), ScopeId(1));
        assert_eq!(*scopes.get(ScopeId(2)), scope("b"));
        for n in 3..CAPACITY {
            assert_eq!(scopes.number(&scope(&n.to_string())), ScopeId(n as u16));
        }
        assert_eq!(scopes.number(&scope("one too many")), ScopeId(0));
    }
}
