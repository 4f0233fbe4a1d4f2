import type { LlamaServerFacts } from '../config/help.js';
import type { Settings } from '../config/settings.js';

/** The router form of `/props` (llama-server, tools/server/server-models.cpp). */
export function routerProps(settings: Settings, facts: LlamaServerFacts): Record<string, unknown> {
  return {
    role: 'router',
    max_instances: settings.modelsMax,
    models_autoload: settings.modelsAutoload,
    model_alias: 'llama-server',
    model_path: 'none',
    default_generation_settings: { params: null, n_ctx: 0 },
    ui_settings: {},
    build_info: facts.buildInfo,
    cors_proxy_enabled: false,
  };
}
