import {
  bytes,
  choice,
  commaSeparated,
  flag,
  hostList,
  integer,
  nativeTimeout,
  optionalPath,
  optionalText,
  pathPrefix,
  seconds,
  text,
  type Kind,
} from './setting-kinds.js';

/** Everything `llama-supervisor start` is told, read and checked. */
export interface Settings {
  /** Addresses to listen on, each an IP address, a host name, or the path of a Unix socket ending in `.sock`. */
  readonly hosts: readonly string[];
  /** 0 = any free port. */
  readonly port: number;
  readonly modelsDir: string | undefined;
  readonly modelsPreset: string | undefined;
  /** 0 = unlimited. */
  readonly modelsMax: number;
  readonly modelsAutoload: boolean;
  /** How long a connection may be silent; 0 = no limit. */
  readonly timeoutMs: number;
  /** From `--api-key` and `--api-key-file`, as they were at the start; empty = no key is asked for. */
  readonly apiKeys: readonly string[];
  /** Those of `apiKeys` that `apiKeyFile` does not hold, and that hence stay when it changes. */
  readonly fixedApiKeys: readonly string[];
  /** Holds more keys, for `readKeyFile`. */
  readonly apiKeyFile: string | undefined;
  /** Either both TLS files or neither. */
  readonly sslKeyFile: string | undefined;
  readonly sslCertFile: string | undefined;
  /** Whether other processes may listen on the same port; they share its connections. */
  readonly reusePort: boolean;
  /** Empty, or a path with a leading and without a trailing slash. */
  readonly apiPrefix: string;
  /** What `Access-Control-Allow-Origin` says: `*`, `localhost`, or the origins; undefined = the default. */
  readonly corsOrigins: string | undefined;
  readonly corsMethods: string;
  readonly corsHeaders: string;
  readonly corsCredentials: boolean;
  /** Names, besides those of loopback, by which this server is asked to change something when there are no keys. */
  readonly allowedHosts: readonly string[];
  /** Connections of clients that are open at once; 0 = as many as the limit on open files allows. */
  readonly connectionsMax: number;
  /** Whether the models that were loaded when the last run ended are loaded at the start. */
  readonly restore: boolean;
  /** Whether the web UI is served. */
  readonly ui: boolean;
  /** Directory that is served instead of the built-in web UI. */
  readonly staticPath: string | undefined;
  /** JSON with the web UI's defaults, and a file of such. */
  readonly uiConfig: string | undefined;
  readonly uiConfigFile: string | undefined;
  /** What the helper child does besides serving the web UI. */
  readonly uiMcpProxy: boolean;
  readonly tools: string | undefined;
  readonly mcpServersConfig: string | undefined;
  readonly mcpServersJson: string | undefined;
  readonly agent: boolean;
  /** Whether nothing may be asked of the network. */
  readonly offline: boolean;
  /** Access token for the hub. Never shown. */
  readonly hfToken: string | undefined;
  readonly llamaServer: string | undefined;
  readonly demo: boolean;
  readonly queueMax: number;
  /** Requests that one model answers at once; 0 = no bound. */
  readonly inFlightMax: number;
  readonly queueTimeoutMs: number;
  readonly loadTimeoutMs: number;
  /** How long a model with requests may show no progress; 0 = no bound. */
  readonly hangTimeoutMs: number;
  readonly fairAfterMs: number;
  readonly drainTimeoutMs: number;
  /** How long a streamed answer may wait before its stream is begun with comments; 0 = as long as it takes. */
  readonly streamPingAfterMs: number;
  readonly streamPingIntervalMs: number;
  /** Id of the model for requests that name none; `auto` is the only model there is. */
  readonly defaultModel: string | undefined;
  readonly bodyMaxBytes: number;
  readonly bodyMemoryMaxBytes: number;
  readonly logLevel: string;
  readonly logFormat: 'auto' | 'json' | 'text';
  /** Whether changes on disk are followed. */
  readonly watch: boolean;
  /** Look every few seconds instead of being told by the file system. */
  readonly watchPolling: boolean;
}

/** Under which title the help lists a setting, in this order. */
export const SETTING_GROUPS = {
  listen: 'Where to listen',
  clients: 'Who may ask',
  models: 'Which models there are',
  scheduling: 'When models are loaded and stopped',
  ui: 'Web UI and tools',
  limits: 'How long and how much',
  logging: 'What is logged',
  program: 'What runs the models',
} as const;

/** How one setting is given. */
export interface SettingRow<T> {
  readonly name: `--${string}`;
  readonly env: string;
  readonly group: keyof typeof SETTING_GROUPS;
  readonly kind: Kind<T>;
  /** The default, as a person would write it. */
  readonly initial: string;
  /** One line. */
  readonly help: string;
}

type RouterField =
  | 'hosts'
  | 'port'
  | 'reusePort'
  | 'modelsDir'
  | 'modelsPreset'
  | 'modelsMax'
  | 'modelsAutoload'
  | 'timeoutMs'
  | 'apiKeys'
  | 'apiKeyFile'
  | 'sslKeyFile'
  | 'sslCertFile'
  | 'apiPrefix'
  | 'corsOrigins'
  | 'corsMethods'
  | 'corsHeaders'
  | 'corsCredentials'
  | 'ui'
  | 'staticPath'
  | 'uiConfig'
  | 'uiConfigFile'
  | 'uiMcpProxy'
  | 'tools'
  | 'mcpServersConfig'
  | 'mcpServersJson'
  | 'agent'
  | 'offline'
  | 'hfToken';
/** Made of others, not given. */
type DerivedField = 'fixedApiKeys';
type OwnField = Exclude<keyof Settings, RouterField | DerivedField>;

/**
 * Options of `llama-server` that the router itself obeys. The installed binary's own table says how they are
 * spelled; the names here serve a binary that does not list one.
 */
export const ROUTER_ROWS: { readonly [Field in RouterField]: SettingRow<Settings[Field]> } = {
  hosts: {
    name: '--host',
    env: 'LLAMA_ARG_HOST',
    group: 'listen',
    kind: hostList,
    initial: '127.0.0.1',
    help: 'Addresses to listen on, with commas between them; a path that ends in .sock is a Unix socket.',
  },
  port: {
    name: '--port',
    env: 'LLAMA_ARG_PORT',
    group: 'listen',
    kind: integer({ min: 0, max: 65535, note: '0 = any free port', placeholder: 'PORT' }),
    initial: '8080',
    help: 'Port to listen on; 0 takes any free one.',
  },
  reusePort: {
    name: '--reuse-port',
    env: 'LLAMA_ARG_REUSE_PORT',
    group: 'listen',
    kind: flag,
    initial: 'off',
    help: 'Let several processes listen on the same port.',
  },
  modelsDir: {
    name: '--models-dir',
    env: 'LLAMA_ARG_MODELS_DIR',
    group: 'models',
    kind: optionalPath,
    initial: '',
    help: 'Directory of GGUF files to serve, besides the Hugging Face cache.',
  },
  modelsPreset: {
    name: '--models-preset',
    env: 'LLAMA_ARG_MODELS_PRESET',
    group: 'models',
    kind: optionalPath,
    initial: '',
    help: 'INI file with a section of options for each model.',
  },
  modelsMax: {
    name: '--models-max',
    env: 'LLAMA_ARG_MODELS_MAX',
    group: 'scheduling',
    kind: integer({ min: 0, note: '0 = unlimited' }),
    initial: '4',
    help: 'How many models are loaded at once; 0 = unlimited.',
  },
  modelsAutoload: {
    name: '--models-autoload',
    env: 'LLAMA_ARG_MODELS_AUTOLOAD',
    group: 'scheduling',
    kind: flag,
    initial: 'on',
    help: 'Load a model on the first request for it; --no-models-autoload: only when told to.',
  },
  timeoutMs: {
    name: '--timeout',
    env: 'LLAMA_ARG_TIMEOUT',
    group: 'limits',
    kind: nativeTimeout,
    initial: '3600',
    help: 'How long a connection may be silent; 0 = no limit.',
  },
  apiKeys: {
    name: '--api-key',
    env: 'LLAMA_API_KEY',
    group: 'clients',
    kind: commaSeparated('KEY[,KEY...]'),
    initial: '',
    help: 'Keys that clients must send, one of them each.',
  },
  apiKeyFile: {
    name: '--api-key-file',
    env: 'LLAMA_ARG_API_KEY_FILE',
    group: 'clients',
    kind: optionalPath,
    initial: '',
    help: 'File with more such keys, one per line; # begins a comment line.',
  },
  sslKeyFile: {
    name: '--ssl-key-file',
    env: 'LLAMA_ARG_SSL_KEY_FILE',
    group: 'listen',
    kind: optionalPath,
    initial: '',
    help: 'Private key for HTTPS (PEM); needs --ssl-cert-file.',
  },
  sslCertFile: {
    name: '--ssl-cert-file',
    env: 'LLAMA_ARG_SSL_CERT_FILE',
    group: 'listen',
    kind: optionalPath,
    initial: '',
    help: 'Certificate for HTTPS (PEM); needs --ssl-key-file.',
  },
  apiPrefix: {
    name: '--api-prefix',
    env: 'LLAMA_ARG_API_PREFIX',
    group: 'listen',
    kind: pathPrefix,
    initial: '',
    help: 'Path under which everything is served, such as /llama.',
  },
  corsOrigins: {
    name: '--cors-origins',
    env: 'LLAMA_ARG_CORS_ORIGINS',
    group: 'clients',
    kind: optionalText('ORIGINS'),
    initial: '',
    help: 'Origins whose pages may ask: *, localhost, or a list with commas; * unless tools are on.',
  },
  corsMethods: {
    name: '--cors-methods',
    env: 'LLAMA_ARG_CORS_METHODS',
    group: 'clients',
    kind: text('METHODS'),
    initial: 'GET, POST, DELETE, OPTIONS',
    help: 'Methods that such pages may use.',
  },
  corsHeaders: {
    name: '--cors-headers',
    env: 'LLAMA_ARG_CORS_HEADERS',
    group: 'clients',
    kind: text('HEADERS'),
    initial: '*',
    help: 'Headers that such pages may send.',
  },
  corsCredentials: {
    name: '--cors-credentials',
    env: 'LLAMA_ARG_CORS_CREDENTIALS',
    group: 'clients',
    kind: flag,
    initial: 'on',
    help: 'Whether such pages may send credentials.',
  },
  ui: {
    name: '--ui',
    env: 'LLAMA_ARG_UI',
    group: 'ui',
    kind: flag,
    initial: 'on',
    help: 'Serve the web UI.',
  },
  staticPath: {
    name: '--path',
    env: 'LLAMA_ARG_STATIC_PATH',
    group: 'ui',
    kind: optionalPath,
    initial: '',
    help: 'Directory to serve instead of the built-in web UI.',
  },
  uiConfig: {
    name: '--ui-config',
    env: 'LLAMA_ARG_UI_CONFIG',
    group: 'ui',
    kind: optionalText('JSON'),
    initial: '',
    help: 'Defaults of the web UI, as JSON.',
  },
  uiConfigFile: {
    name: '--ui-config-file',
    env: 'LLAMA_ARG_UI_CONFIG_FILE',
    group: 'ui',
    kind: optionalPath,
    initial: '',
    help: 'File with defaults of the web UI, as JSON.',
  },
  uiMcpProxy: {
    name: '--ui-mcp-proxy',
    env: 'LLAMA_ARG_UI_MCP_PROXY',
    group: 'ui',
    kind: flag,
    initial: 'off',
    help: 'Let the web UI reach MCP servers through this server.',
  },
  tools: {
    name: '--tools',
    env: 'LLAMA_ARG_TOOLS',
    group: 'ui',
    kind: optionalText('TOOL1,TOOL2,...'),
    initial: '',
    help: 'Built-in tools that clients may use; all for every one.',
  },
  mcpServersConfig: {
    name: '--mcp-servers-config',
    env: 'LLAMA_ARG_MCP_SERVERS_CONFIG',
    group: 'ui',
    kind: optionalPath,
    initial: '',
    help: 'File with definitions of MCP servers whose tools clients may use.',
  },
  mcpServersJson: {
    name: '--mcp-servers-json',
    env: 'LLAMA_ARG_MCP_SERVERS_JSON',
    group: 'ui',
    kind: optionalText('JSON'),
    initial: '',
    help: 'Such definitions themselves.',
  },
  agent: {
    name: '--agent',
    env: 'LLAMA_ARG_AGENT',
    group: 'ui',
    kind: flag,
    initial: 'off',
    help: 'All built-in tools, and the proxy for MCP servers.',
  },
  offline: {
    name: '--offline',
    env: 'LLAMA_ARG_OFFLINE',
    group: 'models',
    kind: flag,
    initial: 'off',
    help: 'Ask nothing of the network: models are served from the cache, none is downloaded.',
  },
  hfToken: {
    name: '--hf-token',
    env: 'HF_TOKEN',
    group: 'models',
    kind: optionalText('TOKEN'),
    initial: '',
    help: 'Access token for Hugging Face; in the environment (HF_TOKEN) nobody else can read it.',
  },
};

/** Options of llama-supervisor itself. */
export const OWN_ROWS: { readonly [Field in OwnField]: SettingRow<Settings[Field]> } = {
  llamaServer: {
    name: '--llama-server',
    env: 'LLAMA_SERVER_BIN',
    group: 'program',
    kind: optionalPath,
    initial: '',
    help: 'The llama-server to run; by default the one of ./build-llama.sh, else the one on PATH.',
  },
  demo: {
    name: '--demo',
    env: 'LLAMA_SUPERVISOR_DEMO',
    group: 'models',
    kind: flag,
    initial: 'off',
    help: 'Also serve the small demo models.',
  },
  allowedHosts: {
    name: '--allowed-hosts',
    env: 'LLAMA_SUPERVISOR_ALLOWED_HOSTS',
    group: 'clients',
    kind: commaSeparated('NAME[,NAME...]'),
    initial: '',
    help: 'Names by which clients without keys may manage models, besides those of loopback; * = any.',
  },
  connectionsMax: {
    name: '--connections-max',
    env: 'LLAMA_SUPERVISOR_CONNECTIONS_MAX',
    group: 'limits',
    kind: integer({ min: 0, note: '0 = as the limit on open files allows' }),
    initial: '0',
    help: 'How many clients may be connected; more are told 503. 0 = as the limit on open files allows.',
  },
  restore: {
    name: '--restore',
    env: 'LLAMA_SUPERVISOR_RESTORE',
    group: 'scheduling',
    kind: flag,
    initial: 'off',
    help: 'At the start, load the models again that were loaded when the last run ended.',
  },
  queueMax: {
    name: '--queue-max',
    env: 'LLAMA_SUPERVISOR_QUEUE_MAX',
    group: 'limits',
    kind: integer({ min: 1 }),
    initial: '1024',
    help: 'How many requests may wait for a model; more are refused with 429.',
  },
  inFlightMax: {
    name: '--in-flight-max',
    env: 'LLAMA_SUPERVISOR_IN_FLIGHT_MAX',
    group: 'limits',
    kind: integer({ min: 0, note: '0 = no bound' }),
    initial: '56',
    help: 'How many requests one model answers at once; more wait in line. 0 = no bound.',
  },
  queueTimeoutMs: {
    name: '--queue-timeout',
    env: 'LLAMA_SUPERVISOR_QUEUE_TIMEOUT',
    group: 'limits',
    kind: seconds({ orZero: false }),
    initial: '600',
    help: 'How long a request may wait for a model before it is refused with 503.',
  },
  loadTimeoutMs: {
    name: '--load-timeout',
    env: 'LLAMA_SUPERVISOR_LOAD_TIMEOUT',
    group: 'scheduling',
    kind: seconds({ orZero: false }),
    initial: '600',
    help: 'How long a model may take to load before it is stopped and failed.',
  },
  hangTimeoutMs: {
    name: '--hang-timeout',
    env: 'LLAMA_SUPERVISOR_HANG_TIMEOUT',
    group: 'scheduling',
    kind: seconds({ orZero: true }),
    initial: '600',
    help: 'How long a model with requests may show no progress before it is started anew; 0 = for ever.',
  },
  fairAfterMs: {
    name: '--fair-after',
    env: 'LLAMA_SUPERVISOR_FAIR_AFTER',
    group: 'scheduling',
    kind: seconds({ orZero: true }),
    initial: '30',
    help: 'How long traffic to loaded models may hold up a request for another one.',
  },
  drainTimeoutMs: {
    name: '--drain-timeout',
    env: 'LLAMA_SUPERVISOR_DRAIN_TIMEOUT',
    group: 'limits',
    kind: seconds({ orZero: true }),
    initial: '60',
    help: 'How long running requests may go on after a stop signal or an unload; 0 = not at all.',
  },
  streamPingAfterMs: {
    name: '--stream-ping-after',
    env: 'LLAMA_SUPERVISOR_STREAM_PING_AFTER',
    group: 'limits',
    kind: seconds({ orZero: true }),
    initial: '15',
    help: 'How long a streamed answer may wait before its stream begins with comments; 0 = never early.',
  },
  streamPingIntervalMs: {
    name: '--stream-ping-interval',
    env: 'LLAMA_SUPERVISOR_STREAM_PING_INTERVAL',
    group: 'limits',
    kind: seconds({ orZero: false }),
    initial: '10',
    help: 'How often such a comment is sent.',
  },
  defaultModel: {
    name: '--default-model',
    env: 'LLAMA_SUPERVISOR_DEFAULT_MODEL',
    group: 'models',
    kind: optionalText('ID'),
    initial: '',
    help: 'Model for requests that name none; auto = the only model there is.',
  },
  bodyMaxBytes: {
    name: '--body-max',
    env: 'LLAMA_SUPERVISOR_BODY_MAX',
    group: 'limits',
    kind: bytes,
    initial: '100MiB',
    help: 'Largest request body; larger ones are refused with 413.',
  },
  bodyMemoryMaxBytes: {
    name: '--body-memory-max',
    env: 'LLAMA_SUPERVISOR_BODY_MEMORY_MAX',
    group: 'limits',
    kind: bytes,
    initial: '1GiB',
    help: 'Memory for all request bodies together.',
  },
  logLevel: {
    name: '--log-level',
    env: 'LLAMA_SUPERVISOR_LOG_LEVEL',
    group: 'logging',
    kind: choice('trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'),
    initial: 'info',
    help: 'What is logged: this level and all above it.',
  },
  logFormat: {
    name: '--log-format',
    env: 'LLAMA_SUPERVISOR_LOG_FORMAT',
    group: 'logging',
    kind: choice('auto', 'json', 'text'),
    initial: 'auto',
    help: 'auto is text on a terminal and JSON elsewhere.',
  },
  watch: {
    name: '--watch',
    env: 'LLAMA_SUPERVISOR_WATCH',
    group: 'models',
    kind: flag,
    initial: 'on',
    help: 'Follow changes of models, presets and keys on disk.',
  },
  watchPolling: {
    name: '--watch-polling',
    env: 'LLAMA_SUPERVISOR_WATCH_POLLING',
    group: 'models',
    kind: flag,
    initial: 'off',
    help: 'Look for changes every few seconds instead of being told, for network file systems.',
  },
};
