import type { LlamaServerFacts } from '../config/help.js';
import type { Settings } from '../config/settings.js';

/**
 * The router form of `/props` (llama-server, tools/server/server-models.cpp).
 *
 * @param uiSettings the defaults of the web UI, as `readWebUiSettings` gives them
 */
export function routerProps(
  settings: Settings,
  facts: LlamaServerFacts,
  uiSettings: unknown,
): Record<string, unknown> {
  return {
    role: 'router',
    max_instances: settings.modelsMax,
    models_autoload: settings.modelsAutoload,
    model_alias: 'llama-server',
    model_path: 'none',
    default_generation_settings: { params: null, n_ctx: 0 },
    ui_settings: uiSettings,
    build_info: facts.buildInfo,
    cors_proxy_enabled: settings.uiMcpProxy,
  };
}
