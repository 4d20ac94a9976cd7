/*
 * Writes log lines as Omni Proxy writes them, for the tests of omnitrace_omni_proxy.
 *
 *   replay;              content handler: the request's body says what to do, one step a line:
 *                        KIND <tab> DUE <tab> DOING <tab> UPSTREAM <tab> MESSAGE
 *                        request  logs MESSAGE for the request, cycle for none; DOING is what
 *                                 nginx does meanwhile, UPSTREAM where the request is
 *                        prefill  sends the subrequest and goes on when it is over
 *                        decode   leaves the request to the location @decode
 *                        answer   MESSAGE is the answer's body, "|" a line's end in it; its type
 *                                 is UPSTREAM, among the headers that nginx does not know
 *                        A step waits until the clock since boot shows DUE microseconds. In a
 *                        MESSAGE, "Timestamp:@" gets that clock's time.
 *   replay_request_id ID;
 *                        gives a request without X-Request-Id this one, and says so
 *   replay_context TRACEPARENT;
 *                        gives a request without Traceparent this one and a copy, and says so
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

typedef struct {
    ngx_str_t  request_id;
    ngx_str_t  context;
} replay_conf_t;

typedef struct {
    ngx_http_request_t  *request;
    ngx_event_t          timer;
    u_char              *next;
    u_char              *end;
    u_char              *type;
    u_char              *answer;
} replay_ctx_t;

static ngx_int_t replay_postconfiguration(ngx_conf_t *cf);
static void *replay_create_conf(ngx_conf_t *cf);
static char *replay_merge_conf(ngx_conf_t *cf, void *parent, void *child);
static char *replay_set(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static ngx_int_t replay_init_module(ngx_cycle_t *cycle);
static void replay_go_on(replay_ctx_t *ctx);

#define REPLAY_ANYWHERE  NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF

static ngx_command_t  replay_commands[] = {
    { ngx_string("replay"), NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      replay_set, NGX_HTTP_LOC_CONF_OFFSET, 0, NULL },
    { ngx_string("replay_request_id"), REPLAY_ANYWHERE|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot, NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(replay_conf_t, request_id), NULL },
    { ngx_string("replay_context"), REPLAY_ANYWHERE|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot, NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(replay_conf_t, context), NULL },
    ngx_null_command
};

static ngx_http_module_t  replay_ctx = {
    NULL, replay_postconfiguration, NULL, NULL, NULL, NULL,
    replay_create_conf, replay_merge_conf
};

ngx_module_t  ngx_http_replay_module = {
    NGX_MODULE_V1,
    &replay_ctx, replay_commands, NGX_HTTP_MODULE,
    NULL, replay_init_module, NULL, NULL, NULL, NULL, NULL,
    NGX_MODULE_V1_PADDING
};

ngx_module_t  *ngx_modules[] = { &ngx_http_replay_module, NULL };
char          *ngx_module_names[] = { "ngx_http_replay_module", NULL };
char          *ngx_module_order[] = { NULL };


static int64_t
replay_clock(void)
{
    struct timespec  now;

    clock_gettime(CLOCK_MONOTONIC, &now);

    return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}


/* The field up to the next tab or the line's end, as a string of C. */

static char *
replay_field(replay_ctx_t *ctx)
{
    u_char  *field = ctx->next;

    while (ctx->next < ctx->end && *ctx->next != '\t' && *ctx->next != '\n') {
        ctx->next++;
    }

    *ctx->next++ = '\0';

    return (char *) field;
}


static void
replay_log(ngx_log_t *log, char *message)
{
    char     *at = strstr(message, "Timestamp:@");
    int64_t   now;

    if (at == NULL) {
        ngx_log_error(NGX_LOG_INFO, log, 0, "%s", message);
        return;
    }

    now = replay_clock();
    *at = '\0';

    ngx_log_error(NGX_LOG_INFO, log, 0, "%sTimestamp:%L.%06L%s", message,
                  now / 1000000, now % 1000000, at + sizeof("Timestamp:@") - 1);
}


static ngx_int_t
replay_prefilled(ngx_http_request_t *r, void *data, ngx_int_t rc)
{
    replay_ctx_t  *ctx = data;

    ngx_add_timer(&ctx->timer, 0);

    return rc;
}


static ngx_int_t
replay_prefill(replay_ctx_t *ctx)
{
    ngx_str_t                    uri;
    ngx_http_request_t          *r = ctx->request, *sr;
    ngx_http_post_subrequest_t  *ps;

    uri.len = sizeof("/prefill_sub") - 1 + r->uri.len;
    uri.data = ngx_pnalloc(r->pool, uri.len);
    ps = ngx_palloc(r->pool, sizeof(ngx_http_post_subrequest_t));

    if (uri.data == NULL || ps == NULL) {
        return NGX_ERROR;
    }

    ngx_sprintf(uri.data, "/prefill_sub%V", &r->uri);
    ps->handler = replay_prefilled;
    ps->data = ctx;

    if (ngx_http_subrequest(r, &uri, NULL, &sr, ps, NGX_HTTP_SUBREQUEST_IN_MEMORY) != NGX_OK) {
        return NGX_ERROR;
    }

    sr->method = r->method;
    sr->method_name = r->method_name;

    return NGX_OK;
}


static void
replay_timer(ngx_event_t *ev)
{
    replay_ctx_t      *ctx = ev->data;
    ngx_connection_t  *c = ctx->request->connection;

    replay_go_on(ctx);
    ngx_http_run_posted_requests(c);
}


static ngx_int_t
replay_add(ngx_http_request_t *r, ngx_list_t *headers, char *name, u_char *value)
{
    ngx_table_elt_t  *h = ngx_list_push(headers);

    if (h == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(h, sizeof(ngx_table_elt_t));
    h->hash = 1;
    h->key.len = strlen(name);
    h->key.data = (u_char *) name;
    h->value.len = ngx_strlen(value);
    h->value.data = value;
    h->lowcase_key = ngx_pnalloc(r->pool, h->key.len);

    if (h->lowcase_key == NULL) {
        return NGX_ERROR;
    }

    ngx_strlow(h->lowcase_key, h->key.data, h->key.len);

    return NGX_OK;
}


static ngx_int_t
replay_answer(ngx_http_request_t *r, replay_ctx_t *ctx)
{
    u_char       *p;
    ngx_int_t     rc;
    ngx_buf_t    *b;
    ngx_chain_t   out;

    r->headers_out.status = NGX_HTTP_OK;

    if (ctx->answer == NULL) {
        r->headers_out.content_length_n = 0;
        r->header_only = 1;
        return ngx_http_send_header(r);
    }

    if (replay_add(r, &r->headers_out.headers, "Content-Type", ctx->type) != NGX_OK) {
        return NGX_ERROR;
    }

    rc = ngx_http_send_header(r);
    b = ngx_calloc_buf(r->pool);
    if (rc != NGX_OK || b == NULL) {
        return NGX_ERROR;
    }

    for (p = ctx->answer; *p; p++) {
        *p = *p == '|' ? '\n' : *p;
    }

    b->pos = ctx->answer;
    b->last = p;
    b->memory = 1;
    b->last_buf = 1;
    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}


static void
replay_go_on(replay_ctx_t *ctx)
{
    char                *kind, *doing, *upstream, *message;
    u_char              *step;
    int64_t              wait;
    ngx_str_t            decode = ngx_string("@decode");
    ngx_log_t           *log = ctx->request->connection->log;
    ngx_http_request_t  *r = ctx->request;

    while (ctx->next < ctx->end) {

        step = ctx->next;
        kind = replay_field(ctx);
        wait = atoll(replay_field(ctx)) - replay_clock();

        if (wait > 0) {
            ctx->next[-1] = '\t';
            kind[strlen(kind)] = '\t';
            ctx->next = step;
            ngx_add_timer(&ctx->timer, wait / 1000 + 1);
            return;
        }

        doing = replay_field(ctx);
        upstream = replay_field(ctx);
        message = replay_field(ctx);

        if (strcmp(kind, "cycle") == 0) {
            replay_log(ngx_cycle->log, message);
            continue;
        }

        if (strcmp(kind, "answer") == 0) {
            ctx->type = (u_char *) upstream;
            ctx->answer = (u_char *) message;
            continue;
        }

        if (strcmp(kind, "prefill") == 0) {
            if (replay_prefill(ctx) != NGX_OK) {
                ngx_http_finalize_request(r, NGX_ERROR);
            }
            return;
        }

        if (strcmp(kind, "decode") == 0) {
            r->main->count--;
            ngx_http_named_location(r, &decode);
            return;
        }

        r->upstream->peer.name = NULL;

        if (*upstream) {
            r->upstream->peer.name = ngx_palloc(r->pool, sizeof(ngx_str_t));
            r->upstream->peer.name->data = (u_char *) upstream;
            r->upstream->peer.name->len = strlen(upstream);
        }

        log->action = *doing ? doing : NULL;
        replay_log(log, message);
        log->action = NULL;
    }

    r->upstream = NULL;
    ngx_http_finalize_request(r, replay_answer(r, ctx));
}


static void
replay_cleanup(void *data)
{
    replay_ctx_t  *ctx = data;

    if (ctx->timer.timer_set) {
        ngx_del_timer(&ctx->timer);
    }
}


static void
replay_body(ngx_http_request_t *r)
{
    u_char              *p;
    ngx_chain_t         *in;
    replay_ctx_t        *ctx;
    ngx_pool_cleanup_t  *cleanup;

    ctx = ngx_pcalloc(r->pool, sizeof(replay_ctx_t));
    cleanup = ngx_pool_cleanup_add(r->pool, 0);
    /* The log's handler takes what is said of the upstream from there. */
    r->upstream = ngx_pcalloc(r->pool, sizeof(ngx_http_upstream_t));

    p = ngx_pnalloc(r->pool, r->headers_in.content_length_n);

    if (ctx == NULL || cleanup == NULL || r->upstream == NULL || p == NULL) {
        ngx_http_finalize_request(r, NGX_ERROR);
        return;
    }

    ctx->next = p;

    for (in = r->request_body->bufs; in; in = in->next) {
        p = ngx_cpymem(p, in->buf->pos, in->buf->last - in->buf->pos);
    }

    ctx->end = p;

    cleanup->handler = replay_cleanup;
    cleanup->data = ctx;
    ctx->request = r;
    ctx->timer.handler = replay_timer;
    ctx->timer.data = ctx;
    ctx->timer.log = r->connection->log;

    replay_go_on(ctx);
}


static ngx_int_t
replay_handler(ngx_http_request_t *r)
{
    ngx_int_t  rc;

    if (r->headers_in.content_length_n <= 0) {
        return NGX_HTTP_BAD_REQUEST;
    }

    rc = ngx_http_read_client_request_body(r, replay_body);

    return rc >= NGX_HTTP_SPECIAL_RESPONSE ? rc : NGX_DONE;
}


static ngx_table_elt_t *
replay_find(ngx_http_request_t *r, char *name)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    for (part = &r->headers_in.headers.part; part; part = part->next) {
        h = part->elts;
        for (i = 0; i < part->nelts; i++) {
            if (h[i].key.len == strlen(name)
                && ngx_strncasecmp(h[i].key.data, (u_char *) name, h[i].key.len) == 0)
            {
                return &h[i];
            }
        }
    }

    return NULL;
}


static ngx_int_t
replay_rewrite(ngx_http_request_t *r)
{
    replay_conf_t    *conf = ngx_http_get_module_loc_conf(r, ngx_http_replay_module);
    struct timeval    now;
    ngx_table_elt_t  *h;

    if (r != r->main) {
        return NGX_DECLINED;
    }

    gettimeofday(&now, NULL);

    if (conf->request_id.len && replay_find(r, "X-Request-Id") == NULL) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                      "<<<Action: Start to schedule; Timestamp:%d.%06d; RequestID:%s",
                      now.tv_sec, now.tv_usec, conf->request_id.data);
        if (replay_add(r, &r->headers_in.headers, "X-Request-Id", conf->request_id.data) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (conf->context.len == 0) {
        return NGX_DECLINED;
    }

    h = replay_find(r, "Traceparent");

    if (h == NULL) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                      "****Action: Inject Traceparent****; Timestamp:%d.%06d; trace_headers:%s",
                      now.tv_sec, now.tv_usec, conf->context.data);
        if (replay_add(r, &r->headers_in.headers, "Traceparent", conf->context.data) != NGX_OK
            || replay_add(r, &r->headers_in.headers, "TTFT_traceparent", conf->context.data) != NGX_OK)
        {
            return NGX_ERROR;
        }
        return NGX_DECLINED;
    }

    ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                  "****Traceparent already exists****; trace_headers:%s", h->value.data);
    if (replay_add(r, &r->headers_in.headers, "TTFT_traceparent", h->value.data) != NGX_OK) {
        return NGX_ERROR;
    }

    return NGX_DECLINED;
}


static ngx_int_t
replay_init_peer(ngx_http_request_t *r, ngx_http_upstream_srv_conf_t *us)
{
    return ngx_http_upstream_init_round_robin_peer(r, us);
}


/* Omni Proxy, too, takes the choice of prefill nodes over after the configuration is read. */

static ngx_int_t
replay_init_module(ngx_cycle_t *cycle)
{
    ngx_uint_t                       i;
    ngx_http_upstream_srv_conf_t   **us;
    ngx_http_upstream_main_conf_t   *umcf;

    umcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_upstream_module);
    us = umcf->upstreams.elts;

    for (i = 0; i < umcf->upstreams.nelts; i++) {
        if (us[i]->host.len == sizeof("prefill_endpoints") - 1
            && ngx_strncmp(us[i]->host.data, "prefill_endpoints", us[i]->host.len) == 0)
        {
            us[i]->peer.init = replay_init_peer;
        }
    }

    return NGX_OK;
}


static char *
replay_set(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = replay_handler;

    return NGX_CONF_OK;
}


static void *
replay_create_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(replay_conf_t));
}


static char *
replay_merge_conf(ngx_conf_t *cf, void *parent, void *child)
{
    replay_conf_t  *prev = parent, *conf = child;

    ngx_conf_merge_str_value(conf->request_id, prev->request_id, "");
    ngx_conf_merge_str_value(conf->context, prev->context, "");

    return NGX_CONF_OK;
}


static ngx_int_t
replay_postconfiguration(ngx_conf_t *cf)
{
    ngx_http_handler_pt        *h;
    ngx_http_core_main_conf_t  *cmcf;

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
    h = ngx_array_push(&cmcf->phases[NGX_HTTP_REWRITE_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = replay_rewrite;

    return NGX_OK;
}
