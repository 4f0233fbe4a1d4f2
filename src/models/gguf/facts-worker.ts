/** The entry of the thread that reads GGUF headers: a path in, a `FileLook` out (facts-reader.ts). */
import { parentPort } from 'node:worker_threads';
import { lookAtFile } from './gguf-look.js';

parentPort?.on('message', (path: string) => parentPort?.postMessage(lookAtFile(path)));
