//! Passes on what nginx-sys learnt about the nginx this module is built for.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    pass_on(
        "ngx_feature",
        "DEP_NGINX_FEATURES_CHECK",
        "DEP_NGINX_FEATURES",
    );
    pass_on("ngx_os", "DEP_NGINX_OS_CHECK", "DEP_NGINX_OS");

    // nginx unloads modules when a worker exits; the exporter's thread may still be on its way out.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

/// Turns a comma-separated list of nginx-sys into `cfg(name = "…")` switches.
fn pass_on(name: &str, known: &str, present: &str) {
    println!("cargo::rerun-if-env-changed={known}");
    println!("cargo::rerun-if-env-changed={present}");
    let values = env::var(known).unwrap_or_else(|_| "any()".to_owned());
    println!("cargo::rustc-check-cfg=cfg({name}, values({values}))");
    for value in env::var(present)
        .unwrap_or_default()
        .split(',')
        .filter(|v| !v.is_empty())
    {
        println!("cargo::rustc-cfg={name}=\"{}\"", value.trim());
    }
}
