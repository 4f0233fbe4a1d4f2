import { RESERVED_KEYS } from '../../config/render-options.js';

/** Canonical keys that no presets file can set: the router's own, and where a child listens. */
export const RESERVED_IN_PRESETS: ReadonlySet<string> = new Set([...RESERVED_KEYS, 'host', 'port']);
