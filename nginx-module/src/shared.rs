//! What the workers of one nginx share, across reloads: their books, and Omni Proxy's times.

use std::ptr;

use nginx_sys::{
    ngx_conf_t, ngx_int_t, ngx_shared_memory_add, ngx_shm_zone_t, ngx_shmtx_lock, ngx_shmtx_unlock,
    ngx_slab_calloc, ngx_slab_pool_t,
};
use ngx::core::Status;
use ngx::http::{HttpModule, HttpModuleConfExt, HttpModuleMainConf};
use ngx::ngx_string;

use crate::HttpOmnitraceModule;
use crate::books::SharedBooks;
use crate::guard::guard;
use crate::omni_proxy::Mailbox;

/// What is shared. All zero, as nginx hands the memory out, is its beginning.
#[repr(C)]
pub(crate) struct Shared {
    pub(crate) books: SharedBooks,
    pub(crate) mailbox: Mailbox,
}

/// nginx keeps its own notes in the same memory.
const ZONE_BYTES: usize = (size_of::<Shared>() + (128 << 10)).next_multiple_of(4096);

/// The shared memory as one process has it.
#[derive(Clone, Copy)]
pub(crate) struct Zone {
    shared: &'static Shared,
    pool: *mut ngx_slab_pool_t,
}

// SAFETY: the memory is there until the process ends, what is in it is atomic, and the pool's
// mutex is made for being used by many.
unsafe impl Send for Zone {}

impl Zone {
    /// That of a configuration, if it has one.
    pub(crate) fn of(conf: &impl HttpModuleConfExt) -> Option<Self> {
        let zone = HttpOmnitraceModule::main_conf(conf)?.zone.0;
        // SAFETY: nginx keeps the zone as long as the configuration; `init` has put this there.
        unsafe {
            let zone = zone.as_ref()?;
            Some(Self {
                shared: zone.data.cast::<Shared>().as_ref()?,
                pool: zone.shm.addr.cast(),
            })
        }
    }

    pub(crate) fn mailbox(self) -> &'static Mailbox {
        &self.shared.mailbox
    }

    /// The books, which nobody else opens or closes meanwhile. nginx's master lets go for a
    /// worker that dies at it.
    pub(crate) fn with_books<T>(self, body: impl FnOnce(&'static SharedBooks) -> T) -> T {
        // SAFETY: the pool that nginx has made at the start of the zone.
        unsafe { ngx_shmtx_lock(&raw mut (*self.pool).mutex) };
        let result = body(&self.shared.books);
        // SAFETY: as above.
        unsafe { ngx_shmtx_unlock(&raw mut (*self.pool).mutex) };
        result
    }
}

/// Asks nginx for the memory. A reload gets what is there already.
pub(crate) fn add(cf: &mut ngx_conf_t) -> Result<*mut ngx_shm_zone_t, Status> {
    // The name tells one layout from the next: a module of another version makes its own.
    let mut name = ngx_string!("omnitrace_1");
    let tag = ptr::from_ref(HttpOmnitraceModule::module()).cast_mut();
    // SAFETY: nginx's state while it reads its configuration.
    let zone = unsafe { ngx_shared_memory_add(cf, &mut name, ZONE_BYTES, tag.cast()).as_mut() };
    let zone = zone.ok_or(Status::NGX_ERROR)?;
    zone.init = Some(init);
    Ok(zone)
}

unsafe extern "C" fn init(zone: *mut ngx_shm_zone_t, old: *mut std::ffi::c_void) -> ngx_int_t {
    guard("the shared memory", Status::NGX_ERROR, || {
        // SAFETY: nginx calls this with the zone, which begins with a pool.
        unsafe {
            let pool = (*zone).shm.addr.cast::<ngx_slab_pool_t>();
            if !old.is_null() {
                (*zone).data = old;
            } else if (*zone).shm.exists != 0 {
                (*zone).data = (*pool).data;
            } else {
                (*pool).data = ngx_slab_calloc(pool, size_of::<Shared>());
                (*zone).data = (*pool).data;
            }
            match (*zone).data.is_null() {
                true => Status::NGX_ERROR,
                false => Status::NGX_OK,
            }
        }
    })
    .0
}
